"""A linear regression with its gradient in NumPy, and its compiled programs, each made once."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.core import mesh, workers
from jaxdist.ledger import Entry, compiled
from jaxdist.line import build
from jaxdist.training.step import State, make_step
from jaxdist.core.workers import Program, Workers

ROWS = 240  # 1, 3, 4, 5 and 8 workers divide it, and 4 workers in 4 parts each
RATE = 0.1
PLACES = ('simulated', 'mesh')

UNEVEN = np.repeat(np.float32([1, 0, 0.25, 3]), ROWS // 4) * (np.arange(ROWS) % 7 > 1)  # the second of 4 has nothing

# Lines with each kind of state. All tests use the same ones, so that each is compiled once.
SGD = f'sgd(learning_rate={RATE})'
ADAM = 'adamw(learning_rate=0.01)'
MEAN = f'mean() | {SGD}'
INT8 = f'mean(codec=int8(), feedback=True) | {ADAM}'
NOISE = f"mean(codec=int8(rounding='stochastic')) | {SGD}"
OWN_QUEUE = f'delay(steps=2) | mean() | {ADAM}'
ONE_QUEUE = f'mean() | delay(steps=2) | {ADAM}'
LOCAL = f'{SGD} | average(every=2)'
LOCAL_INT8 = f'{ADAM} | average(every=2, codec=int8(), feedback=True)'
SHARED = (MEAN, INT8, NOISE, OWN_QUEUE, ONE_QUEUE)


def place(where: str, count: int, model: int = 1) -> Workers:
    """So many workers, simulated or on a mesh; there each may be `model` devices."""
    if where == 'simulated':
        return workers.simulated(count)
    axes = {'workers': count} | ({'model': model} if model > 1 else {})
    return workers.on_mesh(mesh.make(axes))


def init(key: jax.Array) -> dict[str, jax.Array]:
    return {'w': jax.random.normal(key, (3,)), 'b': jnp.zeros(())}


def loss(params: Any, batch: Any, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    del key
    terms = 0.5 * (batch['x'] @ params['w'] + params['b'] - batch['y']) ** 2
    if 'weight' not in batch:
        return {'loss': terms.sum()}, jnp.float32(terms.size)
    return {'loss': (batch['weight'] * terms).sum()}, batch['weight'].sum()


def batches(steps: int, rows: int = ROWS, weight: Any = None, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random batches [rows, ...]; `weight` [rows] if given."""
    rng = np.random.default_rng(seed)
    more = {} if weight is None else {'weight': np.asarray(weight, np.float32)}
    data = [(rng.normal(size=(rows, 3)), rng.normal(size=rows)) for _ in range(steps)]
    return [{'x': np.float32(x), 'y': np.float32(y), **more} for x, y in data]


def with_nan(batch: dict[str, np.ndarray], count: int, *bad: int) -> dict[str, np.ndarray]:
    """The batch with one target of NaN in the rows of each worker in `bad`."""
    y = batch['y'].copy()
    for worker in bad:
        y[worker * len(y) // count] = np.nan
    return {**batch, 'y': y}


def shard(batch: dict[str, np.ndarray], count: int, worker: int) -> dict[str, np.ndarray]:
    """The rows of one of `count` workers."""
    return {name: x.reshape(count, -1, *x.shape[1:])[worker] for name, x in batch.items()}


def gradient(params: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradient of the weighted mean over all rows, in float64."""
    x, y = np.float64(batch['x']), np.float64(batch['y'])
    weight = np.float64(batch.get('weight', np.ones(len(y))))
    error = weight * (x @ params['w'] + params['b'] - y) / max(weight.sum(), 1e-9)
    return {'w': error @ x, 'b': error.sum()}


def descend(params: Any, grads: Any) -> Any:
    """One step of gradient descent with the rate `RATE`."""
    return jax.tree.map(lambda p, g: p - RATE * g, params, grads)


@functools.cache
def program(
    line: str, where: str = 'simulated', count: int = 4, *, rows: int = ROWS, weighted: bool = False, **options: Any
) -> Program:
    """The regression under an update line."""
    (batch,) = batches(1, rows, np.ones(rows) if weighted else None)
    return make_step(loss, init, build(line), batch, place(where, count), **options)


def start(made: Program, seed: int = 0) -> State:
    return made.init(jax.random.key(seed))


def run(made: Program, data: Iterable[Any], state: Any = None) -> tuple[State, dict[str, jax.Array]]:
    """The state and the last metrics after one step for each batch."""
    state, metrics = start(made) if state is None else state, {}
    for batch in data:
        state, metrics = made.step(state, batch)
    return state, metrics


def host(tree: Any) -> Any:
    """A copy in NumPy; of random keys, their data."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), tree)


def sent(made: Program, batch: Any, where: Workers) -> list[Entry]:
    """The collectives of the compiled step on a mesh."""
    return compiled(made.step.lower(made.state, batch).compile(), where.mesh)
