"""On a TPU compressed averages send their formula's bytes as well: read from programs compiled for eight chips.

`./scripts/test tpu` runs these; nothing here runs a program, so no TPU is needed.
"""

import functools
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxdist import laws, ledger, line
from jaxdist.codecs._compressed_mean import bytes_sent
from jaxdist.codecs._exchange import EXCHANGES
from jaxdist.codecs.codec import Codec
from jaxdist.core import mesh as meshes
from jaxdist.core import registry, workers
from jaxdist.core.protocol import sharded_as
from jaxdist.core.types import Task
from jaxdist.ledger import _hlo as hlo
from jaxdist.models.transformer import Transformer
from jaxdist.training.step import make_step

Chips = topologies.TopologyDescription
Rows = list[ledger.Collective]
Case = tuple[str, str | None, int]

CODECS = [next(iter(entry.examples)) for entry in registry.codecs().values()]
SMALL = {'w': (31, 43), 'b': (3,)}
LARGE = {'w': (317, 320), 'b': (3,)}

GATHERED, SWAPPED = ('all_gather', 'uint8'), ('all_to_all', 'uint8')
SUMMED, WORDS = ('all_reduce', 'float32'), ('all_reduce', 'uint32')
CARRIERS = {
    'gather': {GATHERED},
    'two_phases': {SWAPPED, GATHERED},
    'all_reduce': {SUMMED, WORDS},
    None: {GATHERED, SWAPPED, SUMMED},
}
"""What may carry an exchange's messages: bytes, float32, and words of whole numbers that add up."""


def cases(*counts: int) -> list[Case]:
    """Each codec by each exchange that takes it; those that choose for themselves by the one they choose."""
    found: list[Case] = []
    for text in CODECS:
        codec = line.build_codec(text)
        for name in EXCHANGES if isinstance(codec, Codec) else (None,):
            found += [(text, name, count) for count in counts if travels(codec, name, count)]
    return found


def travels(codec: Any, exchange: str | None, count: int) -> bool:
    """Whether so many workers' messages can travel so: a vote cannot be gathered, eight int4 do not fit when summed."""
    try:
        bytes_sent(codec, exchange)(count, shapes(SMALL))
    except ValueError:
        return False
    return True


def shapes(of: dict[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in of.items()}


def mean(codec: str, exchange: str | None = None) -> str:
    """The line, with feedback where the codec allows it."""
    feedback = getattr(line.build_codec(codec), 'contracts', True)
    return f'mean(codec={codec}, feedback={feedback}, exchange={exchange!r})'


def placed(chips: Chips, count: int) -> Mesh:
    """So many workers on all chips; where there are fewer, each is several chips."""
    axes = {'workers': count} | ({'model': 8 // count} if count < 8 else {})
    laid = topologies.make_mesh(chips, tuple(axes.values()), tuple(axes))
    return Mesh(laid.devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def averaging(chips: Chips, case: Case, of: dict[str, tuple[int, ...]]) -> tuple[str, Rows]:
    """One average of the case, compiled: the program's text, and what it sends."""
    codec, exchange, count = case
    mesh, trial = placed(chips, count), laws.Trial(line.build(mean(codec, exchange)), count, of)
    program = trial.program(workers.on_mesh(mesh))
    sharding = NamedSharding(mesh, jax.P('workers'))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), trial.batch(0))
    text = program.step.lower(program.state, batch).compile().as_text()
    return text, ledger.compiled(text, mesh)


def total(rows: Rows) -> Fraction:
    return sum((row.sent * (row.times or 0) for row in rows), Fraction(0))


def judged(chips: Chips, case: Case, of: dict[str, tuple[int, ...]]) -> None:
    codec, exchange, count = case
    text, rows = averaging(chips, case, of)
    built = line.build_codec(codec)
    votes = set() if getattr(built, 'has_zero', True) else {SUMMED}
    assert total(rows) == bytes_sent(built, exchange)(count, shapes(of)), rows
    assert {row.axes for row in rows} == {('workers',)}
    assert {(row.kind, row.dtype) for row in rows} <= CARRIERS[exchange] | votes
    assert not list(half_empty(text))


def half_empty(text: str) -> Iterator[tuple[str, str]]:
    """Collectives of bytes whose tiles are not full, with their operands: a TPU sends tiles as they lie in memory.

    >>> def program(shape: str) -> str:
    ...     first = f'  %x = {shape} parameter(0)'
    ...     last = f'  ROOT %y = {shape} all-gather(%x)'
    ...     return '\\n'.join(['ENTRY %main (x: u8[]) -> u8[] {', first, last, '}'])
    >>> list(half_empty(program('u8[1,512]{1,0:T(4,128)(4,1)}')))
    [('all-gather', 'u8[1,512]{1,0:T(4,128)(4,1)}')]
    >>> list(half_empty(program('u8[4,128]{1,0:T(4,128)(4,1)}'))), list(half_empty(program('u8[512]{0}')))
    ([], [])
    """
    for computation in hlo.parse(text).computations.values():
        for op in computation.instructions.values():
            if op.opcode.removesuffix('-start') not in ('all-gather', 'all-to-all'):
                continue
            for name in op.operands:
                shape = computation.instructions[name].shape
                if shape.startswith('u8') and held(shape) != sum(hlo.payload(shape).values()):
                    yield op.opcode, shape


def held(shape: str) -> int:
    """Bytes of memory that an array of bytes takes: its last dims are padded to whole tiles.

    >>> held('u8[8,1,640]{2,1,0:T(4,128)(4,1)S(1)}'), held('u8[8,4,160]{2,1,0:T(4,128)(4,1)}'), held('u8[640]{0}')
    (20480, 8192, 640)
    """
    dims, order = ([int(n) for n in re.findall(r'\d+', part)] for part in re.split(r'\]\{|:|\}', shape[2:])[:2])
    tile = re.search(r':T\(([\d,]+)\)', shape)
    sizes = [dims[i] for i in order]  # the dim whose neighbours are neighbours in memory first
    tiles = [int(n) for n in reversed(tile.group(1).split(','))] if tile else []
    return math.prod(-(-n // t) * t for n, t in zip(sizes, tiles + [1] * len(sizes), strict=False))


@pytest.mark.parametrize('codec, exchange, count', cases(2, 4, 8))
def test_a_small_average(chips: Chips, codec: str, exchange: str | None, count: int) -> None:
    judged(chips, (codec, exchange, count), SMALL)


@pytest.mark.parametrize('codec', CODECS)
def test_a_large_average(chips: Chips, codec: str) -> None:
    judged(chips, (codec, None, 8), LARGE)


def test_a_row_of_bytes_would_be_sent_four_times(chips: Chips) -> None:
    """Why messages are gathered as four rows: the check sees a program that sends them as they are."""
    mesh = placed(chips, 8)
    row = jax.ShapeDtypeStruct((8 * 512,), np.uint8, sharding=NamedSharding(mesh, jax.P('workers')))
    found = {}
    for rows in (1, 4):

        def gathered(x: jax.Array, rows: int = rows) -> jax.Array:
            return jax.lax.all_gather(x.reshape(rows, -1), 'workers', to='invarying')

        program = jax.shard_map(gathered, mesh=mesh, in_specs=jax.P('workers'), out_specs=jax.P())
        text = jax.jit(program).lower(row).compile().as_text()
        assert total(ledger.compiled(text, mesh)) == 7 * 512
        found[rows] = [held(shape) for _, shape in half_empty(text)]
    assert found == {1: [4 * 512], 4: []}


TASK = Task('tokens', (16,), 64)
MODEL = Transformer(layers=1, width=64, heads=2).build(TASK)
PARAMS = jax.eval_shape(MODEL.init, jax.random.key(0))


@functools.cache
def trained(chips: Chips, average: str) -> Rows:
    """What a step of a transformer sends, of four workers that are two chips each."""
    mesh = placed(chips, 4)
    tokens = {'tokens': jax.ShapeDtypeStruct((8, 17), np.int32, sharding=NamedSharding(mesh, jax.P('workers')))}
    update = line.build(f'{average} | sgd(learning_rate=0.1)')
    program = make_step(MODEL.loss, MODEL.init, update, tokens, workers.on_mesh(mesh), rules=MODEL.rules)
    return ledger.compiled(program.step.lower(program.state, tokens).compile(), mesh)


def over(axis: str, rows: Rows) -> ledger.Totals:
    return ledger.totals(row for row in rows if axis in row.axes)


@pytest.mark.parametrize('codec', CODECS)
def test_shards_are_averaged_where_they_lie(chips: Chips, codec: str) -> None:
    """Not one byte between the chips of a worker more than for the exact mean, and those of the formula to others."""
    if codec.startswith('by_path'):
        codec = "by_path(rules={'.*kernel': int8(block=64)})"
    exact, rows = trained(chips, 'mean()'), trained(chips, mean(codec))
    assert over('model', exact)
    assert over('model', rows) == over('model', exact)
    mesh = placed(chips, 4)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), sharded_as(meshes.specs(PARAMS, MODEL.rules, mesh)):
        formula = bytes_sent(line.build_codec(codec))(4, PARAMS)
    vote = Fraction(2 * 3, 4) * 4
    assert total([row for row in rows if 'workers' in row.axes]) == formula + vote
