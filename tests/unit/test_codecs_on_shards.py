"""On a mesh with a model axis each shard is compressed where it lies: no byte more over that axis, the same result."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_fixtures import told_gradients, told_loss
from step_fixtures import sent

from jaxdist import laws, ledger
from jaxdist.core import mesh, workers
from jaxdist.line import build
from jaxdist.training.step import make_step

W, SHARDS, STEPS = 4, 2, 4
SHAPES = {'b': (5,), 'v': (16, 6), 'w': (24, 16), 'x': (3, 8, 7)}
RULES = (('w', (None, 'model')), ('v', ('model', None)), ('x', (None, 'model', None)))
CUT = {'v': 0, 'w': 1, 'x': 1}
"""The dim that is cut."""
LINES = [
    'mean(codec=int8(block=32), feedback=True)',
    "mean(codec=int8(block=32), feedback='ef21', exchange='all_reduce')",
    "mean(codec=sign(block=64), feedback=True, exchange='two_phases')",
    'mean(codec=top_k(k=4, block=64, values=bf16()), feedback=True)',
    'mean(codec=power_sgd(rank=1), feedback=True)',
    "mean(codec=by_path(rules={'w': int4(block=32), 'x': power_sgd(), 'b': None}, rest=int2(block=32)), feedback=True)",
]


@cache
def program(line: str) -> Any:
    where = workers.on_mesh(mesh.make({'workers': W, 'model': SHARDS}))
    start = lambda key: {name: jnp.zeros(shape) for name, shape in SHAPES.items()}  # noqa: E731
    batch = told_gradients(1, W, SHAPES)[0]
    made = make_step(told_loss, start, build(f'{line} | sgd(1.0)'), batch, where, rules=RULES)
    return made, sent(made, batch, where)


def shard(tree: Any, j: int) -> Any:
    """The part of gradients [W, ...] that the devices number `j` of all workers hold."""
    cut = lambda name, x: np.split(x, SHARDS, CUT[name] + 1)[j] if name in CUT else x  # noqa: E731
    return {name: cut(name, x) for name, x in tree.items()}


@pytest.mark.parametrize('line', [pytest.param(x, marks=[] if x is LINES[0] else pytest.mark.slow) for x in LINES])
def test_each_shard_is_averaged_as_on_one_device_a_worker(line: str) -> None:
    made, _ = program(line)
    batches, state = told_gradients(STEPS, W, SHAPES), made.init(jax.random.key(0))
    for batch in batches:
        state, _ = made.step(state, batch)
    for j in range(SHARDS):
        parts = [shard(batch, j) for batch in batches]
        # What is not cut has messages of its own; a low rank's first factors depend on a tensor's number in the tree.
        for names in (list(CUT), ['b']) if 'power_sgd' not in line else (list(SHAPES),):
            gradients = {name: np.stack([part[name] for part in parts]) for name in names}
            trial = laws.Trial(build(line), W, {name: g.shape[2:] for name, g in gradients.items()})
            for name, u in trial.run(gradients).updates.items():
                here = np.asarray(state.params[name])
                here = np.split(here, SHARDS, CUT[name])[j] if name in CUT else here
                np.testing.assert_allclose(here, -u[:, 0].sum(0), rtol=0, atol=2e-5, err_msg=f'{name}, shard {j}')


@pytest.mark.parametrize('line', [pytest.param(x, marks=[] if x is LINES[0] else pytest.mark.slow) for x in LINES])
def test_not_one_byte_more_crosses_the_model_axis(line: str) -> None:
    over_model = [ledger.totals(e for e in program(x)[1] if 'model' in e.axes) for x in ('mean()', line)]
    assert over_model[0] == over_model[1]


def test_what_is_remembered_of_a_cut_tensor_is_cut() -> None:
    made, _ = program('mean(codec=power_sgd(rank=1), feedback=True)')
    warm = made.state.opt_state[0].compression.warm
    assert warm['b'] is None
    assert warm['w'].shape[0] == SHARDS
    assert warm['w'].sharding.spec == jax.P('model')
    residual = made.state.opt_state[0].compression.residual
    assert residual['w'].sharding.spec == jax.P('workers', None, 'model')
