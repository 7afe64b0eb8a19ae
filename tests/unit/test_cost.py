"""What workers send and store, in one call: that of a mesh, also for simulated workers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdist
from jaxdist import ledger
from jaxdist.core import mesh
from jaxdist.core.program import Program

W = 4
BATCH = {'x': np.ones((8, 3), np.float32)}
LINES = {
    'mean() | adam(0.1)': Fraction(2 * 4 * 13 * 3, 4),
    'mean(codec=int8(block=4)) | sgd(0.1)': None,
    'adam(0.1) | average(every=10)': Fraction(2 * 4 * 13 * 3, 4 * 10),
    'parameter_server(optimizer=adam(0.1))': None,
}


def program(update: str, workers: jaxdist.core.workers.Workers) -> Program:
    loss = lambda p, b, key: ({'loss': jnp.sum((b['x'] @ p['w']) ** 2) + jnp.sum(p['b'] ** 2)}, len(b['x']))  # noqa: E731
    init = lambda key: {'w': jnp.zeros((3, 4)), 'b': jnp.zeros(1)}  # noqa: E731
    return jaxdist.make_step(loss, init, jaxdist.build(update), BATCH, workers, guard=False)


@pytest.mark.parametrize('update, sent', LINES.items())
def test_simulated_workers_cost_what_a_mesh_costs(update: str, sent: Fraction | None) -> None:
    simulated, placed = (program(update, w) for w in (jaxdist.simulated(W), jaxdist.on_mesh(mesh.make({'workers': W}))))
    one, other = (jaxdist.cost(each, BATCH, jax.random.key(0)) for each in (simulated, placed))
    assert one == other
    assert one.sent('workers') == sent or sent is None
    assert one.sent('workers') == ledger.measure(
        placed.step, placed.state, ledger.placed_batch(placed, BATCH), placed.workers.mesh, 100,
        initial=lambda: placed.init(jax.random.key(0)),
    ).sent('workers')  # fmt: skip
    state = placed.init(jax.random.key(0))
    per_device = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state._replace(key=())))
    assert one.memory == {'state': per_device + 8, 'batch': 2 * 3 * 4}


def test_a_ledger_of_simulated_workers_names_the_call_that_has_the_bytes() -> None:
    simulated = program('mean() | sgd(0.1)', jaxdist.simulated(W))
    args = simulated.state, BATCH
    for read in (
        lambda: ledger.traced(simulated.run, {'workers': W}, *args),
        lambda: ledger.traced(simulated.step, {'workers': W}, *args),
        lambda: ledger.traced_step(simulated.step, *args, {'workers': W}, 10),
        lambda: ledger.measure(simulated.step, *args, mesh.make({'workers': W}), 10),
    ):
        with pytest.raises(jaxdist.InputError, match=r'simulates 4 workers .* jaxdist\.cost\(program, batch, key\)'):
            read()
