"""A small problem under constraints, and its program, for tests of the step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import mean
from jaxdist.core import workers
from jaxdist.constraints import Constraint, DualAscent, equality, inequality
from jaxdist.training.step import make_step, means
from jaxdist.core.workers import Program, Workers

BATCH = {
    'x': np.linspace(-1, 1, 24).reshape(8, 3).astype(np.float32) + np.eye(8, 3, dtype=np.float32),
    'y': np.linspace(-1, 2, 8).astype(np.float32),
    'group': np.array([0, 0, 1, 0, 1, 1, 0, 1]),
}
BALL = inequality('ball', lambda p: jnp.sum(p['w'] ** 2), bound=0.1)
SMALL = inequality('small', lambda p, b: jnp.abs(b['x'] @ p['w']), over='mean', bound=0.2)
SMALL_EACH = inequality('small', lambda p, b: jnp.abs(b['x'] @ p['w']), over='mean', bound=0.2, per_worker=True)
EVERY = inequality('every', lambda p, b: jnp.abs(b['x'] @ p['w']), over='example', bound=0.2)


def rates(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    inside = jax.nn.one_hot(batch['group'], 2)
    return jax.nn.sigmoid(batch['x'] @ params['w']) @ inside, inside.sum(0)


GAP = equality('gap', rates, over='ratio', then=lambda r: r[0] - r[1])


def loss(params: Any, batch: Any, key: jax.Array) -> tuple[dict[str, jax.Array], Any]:
    return {'loss': jnp.sum((batch['x'] @ params['w'] - batch['y']) ** 2)}, batch['y'].size


def start(key: jax.Array) -> dict[str, jax.Array]:
    return {'w': jnp.array([0.5, -0.5, 1.0])}


def program(
    *constraints: Constraint,
    where: Workers = workers.simulated(4),
    update: optax.GradientTransformation = optax.chain(mean(), optax.sgd(0.1)),
    batch: Any = BATCH,
    dual: optax.GradientTransformation = optax.sgd(0.2),
    made: dict[str, Any] | None = None,
    **how: Any,
) -> Program:
    ascent = DualAscent(constraints, dual, **(made or {})) if constraints else None
    return make_step(loss, start, update, batch, where, constraints=ascent, **how)


def after(program: Program, steps: int, batch: Any = BATCH) -> tuple[Any, dict[str, Any]]:
    state = program.init(jax.random.key(0))
    for _ in range(steps):
        state, metrics = program.step(state, batch)
    return state, means(metrics)


def bits(tree: Any) -> list[bytes]:
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x).tobytes() for x in leaves]
