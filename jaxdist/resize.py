"""Going on with another number of workers: what each had of its own becomes the mean of it, for each."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxdist.step import State
from jaxdist.workers import Program


def saved_by(count: int, program: Program) -> State:
    """The shapes of the program's state, as so many workers saved it, laid out for the program's devices.

    >>> import jaxdist.workers
    >>> where = jaxdist.workers.simulated(2)
    >>> step = lambda s, b: (s + b.sum(), None)
    >>> program = jaxdist.workers.spread(lambda: jnp.zeros(()), step, True, where, ())
    >>> saved_by(8, program).shape
    (8,)
    """
    return jax.tree.map(lambda x, varies: _rows(x, count) if varies else x, program.state, program.layout)


def resized(state: State, program: Program) -> State:
    """The state for the program's number of workers.

    Residuals, parameters, moments and queues, real numbers all, become the mean over the workers that there were: with
    error feedback and EF21, and for a mean that is still to be taken, nothing of their sum is lost, and workers that
    trained alone meet. Of whole numbers it is the largest, and of skipped steps, which are counted, the sum, with the
    first worker.

    Raises:
        ValueError: random keys that differ between workers, of which there is no mean.

    >>> from jaxdist import line, workers
    >>> from jaxdist.step import make_step
    >>> loss = lambda p, b, key: ({'loss': p * jnp.sum(b['x'])}, 1.0)
    >>> batch, update = {'x': jnp.arange(4.0)}, line.build('delay(steps=1) | mean()')
    >>> four, two = (make_step(loss, lambda key: jnp.zeros(()), update, batch, workers.simulated(w)) for w in (4, 2))
    >>> state, _ = four.step(four.init(jax.random.key(0)), batch)
    >>> state.opt_state[0].slots.reshape(-1), resized(state, two).opt_state[0].slots.reshape(-1)
    (Array([0., 1., 2., 3.], dtype=float32), Array([1.5, 1.5], dtype=float32))
    """

    def convert(state: State) -> State:
        new = jax.tree.map(lambda x, like, v: _shared_out(x, like) if v else x, state, program.state, program.layout)
        if program.layout.skipped is True:
            first = jnp.arange(program.state.skipped.shape[0]) == 0
            new = new._replace(skipped=jnp.where(first, jnp.sum(state.skipped), 0).astype(state.skipped.dtype))
        return new

    return jax.jit(convert, out_shardings=jax.tree.map(lambda like: like.sharding, program.state))(state)


def _rows(like: Any, count: int) -> jax.ShapeDtypeStruct:
    sharding, shape = like.sharding, (count, *like.shape[1:])
    if isinstance(sharding, NamedSharding) and count % like.shape[0]:
        # Rows that the workers do not divide lie whole on each.
        sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))
    return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding)


def _shared_out(x: jax.Array, like: Any) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise ValueError(
            'each worker has a random key of its own in the state, and there is no mean of them: go on with as many'
        )
    one = jnp.mean(x, 0) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.max(x, 0)
    return jnp.broadcast_to(one.astype(x.dtype), like.shape)
