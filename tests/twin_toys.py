"""What tests against the NumPy twins share: two losses with their gradients by hand, and data for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import twin

from jaxdist.core import mesh, types, workers

STEPS = 12
EXAMPLES = 48
EDGE = 2e-6  # several times the rounding errors of float32, for numbers near one
WORKERS = (1, 2, 3, 8)
PLACES: dict[str, Callable[[int], workers.Workers]] = {
    'simulated': workers.simulated,
    'mesh': lambda count: workers.on_mesh(mesh.make({'workers': count})),
}
PLANE = twin.Model(twin.plane, {'b': (3,), 'w': (5, 3)})
NETWORK = twin.Model(twin.network, {'b1': (6,), 'b2': (3,), 'w1': (5, 6), 'w2': (6, 3)})


def plane(params: types.Params, batch: types.Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """The loss of `twin.plane`, for JAX to differentiate."""
    return squares(batch['x'] @ params['w'] + params['b'], batch)


def network(params: types.Params, batch: types.Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """The loss of `twin.network`, for JAX to differentiate."""
    hidden = jnp.tanh(batch['x'] @ params['w1'] + params['b1'])
    return squares(hidden @ params['w2'] + params['b2'], batch)


def squares(answer: jax.Array, batch: types.Batch) -> tuple[dict[str, jax.Array], jax.Array]:
    """The sum of half the squared errors, and the number of examples."""
    weight = batch.get('weight', jnp.ones(len(answer), answer.dtype))
    error = jnp.sum((answer - batch['y']) ** 2, axis=1)
    return {'loss': 0.5 * jnp.sum(weight * error)}, jnp.sum(weight)


LOSSES: dict[Callable[..., Any], types.Loss] = {twin.plane: plane, twin.network: network}


def rows(tree: Any, layout: Any, count: int) -> np.ndarray:
    """A part of jaxdist's state as one vector for each worker, [W, n]; what they share is repeated."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True)
    each = [np.asarray(leaf) if varies else np.stack([leaf] * count) for leaf, varies in leaves]
    return np.concatenate([leaf.reshape(count, -1) for leaf in each], axis=1).astype(np.float64)


def normal_data(model: twin.Model, seed: int, steps: int = STEPS) -> tuple[Any, list[dict[str, np.ndarray]], Any]:
    """A start and batches of random float32 numbers, for both to begin with the same; and the generator, to go on."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32).astype(np.float64)

    start = {name: normal(*shape) for name, shape in model.shapes.items()}
    return start, [{'x': normal(EXAMPLES, 5), 'y': normal(EXAMPLES, 3)} for _ in range(steps)], rng
