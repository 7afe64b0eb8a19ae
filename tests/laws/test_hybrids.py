"""Every algorithm that synchronises, on workers of several devices each: fully sharded, and with a model axis as well.

Codecs and meshes are chosen in turn: each algorithm has every mesh, an exact mean and a codec, and each mesh has every
codec.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tree_fixtures import LINES

from jaxdist import line
from jaxdist.core import mesh, workers
from jaxdist.core.program import Program
from jaxdist.core.workers import Workers
from jaxdist.laws.universal import reloaded
from jaxdist.training.step import make_step, shared_params

W, STEPS = 2, 8
SHAPES = {'b': (5,), 'v': (16, 8), 'w': (24, 16), 'x': (3, 8, 7)}
RULES = (('w', (None, 'model')), ('v', ('model', None)), ('x', (None, 'model', None)))
MESHES = [{'workers': W, 'fsdp': 4}, {'workers': W, 'fsdp': 2, 'model': 2}]
CODECS = ['int4(block=32)', 'top_k(k=8, block=32)', 'power_sgd(rank=4)']


def cells() -> list[Any]:
    """(line, axes of the mesh, codec or '')."""
    chosen = []
    for number, name in enumerate(LINES):
        chosen += [(name, number % 2, ''), (name, (number + 1) % 2, CODECS[number % 3])]
    return chosen


CELLS = cells()


def text(name: str, codec: str) -> str:
    if not codec:
        return LINES[name].format('')
    if name == 'parameter_server':
        codec = 'int4(block=32)' if 'power_sgd' in codec else codec  # its parts are no matrices
        return LINES[name].format(f'push={codec}, pull={codec}, feedback=True')
    return LINES[name].format(f'codec={codec}, feedback=True')


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    """Half the squared distance to the targets of each row."""
    del key
    terms = jax.tree.map(lambda p, x: 0.5 * jnp.sum((p - x) ** 2), params, dict(batch))
    return {'loss': sum(jax.tree.leaves(terms))}, jnp.float32(next(iter(batch.values())).shape[0])


def targets() -> dict[str, np.ndarray]:
    """Four rows for each worker, around a common point."""
    rng = np.random.default_rng(0)
    centre = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {name: np.float32(c + 0.3 * rng.normal(size=(4 * W, *c.shape))) for name, c in centre.items()}


BATCH = targets()


def build(update: str, placement: Workers) -> Program[Any]:
    start = lambda key: {name: jnp.zeros(shape) for name, shape in SHAPES.items()}  # noqa: E731
    rules = RULES if len(placement.mesh.shape) > 1 else ()  # type: ignore[union-attr]
    return make_step(loss, start, line.build(update), BATCH, placement, rules=rules)


def trained(program: Program[Any], state: Any, steps: int) -> Any:
    for _ in range(steps):
        state, _ = jax.block_until_ready(program.step(state, BATCH))
    return state


def parameters(program: Program[Any], state: Any) -> dict[str, np.ndarray]:
    shared: dict[str, np.ndarray] = jax.device_get(jax.jit(lambda s: shared_params(s, program.layout))(state))
    return shared


@cache
def expected(name: str) -> dict[str, np.ndarray]:
    """The parameters with an exact mean, on workers of one device each."""
    program = build(text(name, ''), workers.on_mesh(mesh.make({'workers': W})))
    return parameters(program, trained(program, program.init(jax.random.key(0)), STEPS))


@pytest.mark.parametrize(
    'name, axes, codec', [pytest.param(*cell, marks=[pytest.mark.slow] * (cell[0] != 'diloco')) for cell in CELLS]
)
def test_hybrid(name: str, axes: int, codec: str) -> None:
    program = build(text(name, codec), workers.on_mesh(mesh.make(MESHES[axes])))
    state = trained(program, program.init(jax.random.key(0)), STEPS - 3)
    saved = reloaded(state)
    state = trained(program, state, 3)
    for a, b in zip(jax.tree.leaves(trained(program, saved, 3)), jax.tree.leaves(state), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    params = parameters(program, state)
    if not codec:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), params, expected(name))
        return
    # The blocks of a codec begin anew in each shard, so the numbers are near, and not the same.
    optimum = {path: x.mean(0) for path, x in BATCH.items()}
    far = lambda p: np.sqrt(sum(np.sum((p[path] - x) ** 2) for path, x in optimum.items()))  # noqa: E731
    start = far({path: np.zeros(shape) for path, shape in SHAPES.items()})
    assert far(params) < 0.7 * start + 0.3 * far(expected(name)), (far(params), far(expected(name)), start)
