"""One worker's gradient: of the mean of its loss, whole or in parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.task import Batch, Loss, Params


def gradients(loss: Loss, accumulate: int, compute: jax.typing.DTypeLike | None) -> Callable[..., Any]:
    """`(params, batch, key) -> (sums, count, gradient of the mean loss)`.

    Args:
        loss: see `jaxdist.task.Loss`.
        accumulate: parts that the batch is taken in, one after the other; the result is that of the whole.
        compute: the dtype in which the loss sees the parameters, if another than theirs.

    >>> loss = lambda p, b, key: ({'loss': jnp.sum(p * b)}, b.size)
    >>> gradients(loss, 2, None)(jnp.ones(()), jnp.arange(4.0), jax.random.key(0))[2]
    Array(1.5, dtype=float32)
    """

    def part(params: Params, batch: Batch, key: jax.Array, of_the_mean: bool = True) -> Any:
        def objective(params: Params) -> tuple[jax.Array, Any]:
            sums, count = loss(cast(params, compute), batch, key)
            count = lax.stop_gradient(jnp.asarray(count, float))
            return sums['loss'] * (inverse(count) if of_the_mean else 1), (sums, count)

        (_, (sums, count)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return sums, count, grads

    def whole(params: Params, batch: Batch, key: jax.Array) -> Any:
        cut = lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])  # noqa: E731
        parts = jax.tree.map(cut, batch), jax.random.split(key, accumulate)
        one = lambda args: part(params, args[0], args[1], of_the_mean=False)  # noqa: E731
        begin = one(jax.tree.map(lambda x: x[0], parts))
        add = lambda carry, args: (jax.tree.map(jnp.add, carry, one(args)), None)  # noqa: E731
        sums, count, grads = lax.scan(add, begin, jax.tree.map(lambda x: x[1:], parts))[0]
        return sums, count, jax.tree.map(lambda g: g * inverse(count).astype(g.dtype), grads)

    return whole if accumulate > 1 else part


def inverse(count: jax.Array) -> jax.Array:
    """1 / count, and 0 for a worker who has no example.

    >>> inverse(jnp.array([4.0, 0.0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    return jnp.where(count > 0, 1 / count, 0)


def cast(params: Params, compute: jax.typing.DTypeLike | None) -> Params:
    """The parameters as the loss sees them: real numbers in the dtype `compute`, if one is given.

    >>> cast({'w': jnp.ones(1)}, jnp.bfloat16)
    {'w': Array([1], dtype=bfloat16)}
    """
    if compute is None:
        return params
    return jax.tree.map(lambda p: p.astype(compute) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)
