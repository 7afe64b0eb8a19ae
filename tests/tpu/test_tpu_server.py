"""On a TPU the parameter server sends its formula's bytes: a reduce-scatter and an all-gather, or coded messages."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxdist import laws, ledger, line
from jaxdist.codecs._sharded import bytes_sent
from jaxdist.core import workers

SHAPES = {'w': (517, 320), 'b': (3,)}


@pytest.mark.parametrize(
    'words, codec, kinds',
    [
        ('', None, {'reduce_scatter', 'all_gather'}),
        (', push=int8(), pull=int8()', 'int8()', {'all_to_all', 'all_gather'}),
    ],
)
def test_a_server_sends_its_formula(
    chips: topologies.TopologyDescription, words: str, codec: str | None, kinds: set[str]
) -> None:
    laid = topologies.make_mesh(chips, (8,), ('workers',))
    mesh = Mesh(laid.devices, ('workers',), axis_types=(AxisType.Auto,))
    trial = laws.Trial(line.build(f'parameter_server(optimizer=adam(0.1){words})'), 8, SHAPES)
    program = trial.program(workers.on_mesh(mesh))
    sharding = NamedSharding(mesh, jax.P('workers'))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), trial.batch(0))
    rows = ledger.compiled(program.step.lower(program.state, batch).compile().as_text(), mesh)
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}
    formula = 2 * bytes_sent(line.build_codec(codec) if codec else None)(8, shapes)
    sent = sum((row.sent * (row.times or 0) for row in rows), Fraction(0))
    assert {row.kind for row in rows} == kinds
    assert sent == formula
