"""On a mesh with a model axis each shard is compressed on its device: same results, nothing more over that axis."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_fixtures import linear_loss, random_gradients
from step_fixtures import sent

from jaxdist import laws, ledger
from jaxdist.core import mesh, workers
from jaxdist.line import build
from jaxdist.training.step import make_step

W, SHARDS, STEPS = 4, 2, 4
SHAPES = {'b': (5,), 'v': (16, 6), 'w': (24, 16), 'x': (3, 8, 7)}
RULES = (('w', (None, 'model')), ('v', ('model', None)), ('x', (None, 'model', None)))
SHARDED_DIM = {'v': 0, 'w': 1, 'x': 1}
"""The dimension that is sharded over the model axis."""
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
    placement = workers.on_mesh(mesh.make({'workers': W, 'model': SHARDS}))
    start = lambda key: {name: jnp.zeros(shape) for name, shape in SHAPES.items()}  # noqa: E731
    batch = random_gradients(1, W, SHAPES)[0]
    built = make_step(linear_loss, start, build(f'{line} | sgd(1.0)'), batch, placement, rules=RULES)
    return built, sent(built, batch, placement)


def shard(tree: Any, j: int) -> Any:
    """The shard `j` over the model axis of gradients [W, ...]."""
    part = lambda name, x: np.split(x, SHARDS, SHARDED_DIM[name] + 1)[j] if name in SHARDED_DIM else x  # noqa: E731
    return {name: part(name, x) for name, x in tree.items()}


@pytest.mark.parametrize('line', [pytest.param(x, marks=[] if x is LINES[0] else pytest.mark.slow) for x in LINES])
def test_each_shard_is_averaged_as_a_separate_tensor(line: str) -> None:
    built, _ = program(line)
    batches, state = random_gradients(STEPS, W, SHAPES), built.init(jax.random.key(0))
    for batch in batches:
        state, _ = built.step(state, batch)
    for j in range(SHARDS):
        parts = [shard(batch, j) for batch in batches]
        # Replicated tensors have separate messages; PowerSGD's first factors depend on a tensor's index in the tree.
        for names in (list(SHARDED_DIM), ['b']) if 'power_sgd' not in line else (list(SHAPES),):
            gradients = {name: np.stack([part[name] for part in parts]) for name in names}
            trial = laws.Trial(build(line), W, {name: g.shape[2:] for name, g in gradients.items()})
            for name, u in trial.run(gradients).updates.items():
                params = np.asarray(state.params[name])
                params = np.split(params, SHARDS, SHARDED_DIM[name])[j] if name in SHARDED_DIM else params
                np.testing.assert_allclose(params, -u[:, 0].sum(0), rtol=0, atol=2e-5, err_msg=f'{name}, shard {j}')


@pytest.mark.parametrize('line', [pytest.param(x, marks=[] if x is LINES[0] else pytest.mark.slow) for x in LINES])
def test_nothing_more_is_sent_over_the_model_axis(line: str) -> None:
    over_model = [ledger.totals(e for e in program(x)[1] if 'model' in e.axes) for x in ('mean()', line)]
    assert over_model[0] == over_model[1]


def test_the_compression_state_of_a_sharded_tensor_is_sharded() -> None:
    built, _ = program('mean(codec=power_sgd(rank=1), feedback=True)')
    warm = built.state.opt_state[0].compression.warm
    assert warm['b'] is None
    assert warm['w'].shape[0] == SHARDS
    assert warm['w'].sharding.spec == jax.P('model')
    residual = built.state.opt_state[0].compression.residual
    assert residual['w'].sharding.spec == jax.P('workers', None, 'model')
