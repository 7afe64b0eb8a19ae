"""One worker's gradient: of the mean of its loss, whole or in parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.types import Batch, Loss, Params


def gradients(loss: Loss, accumulate: int, compute: jax.typing.DTypeLike | None) -> Callable[..., Any]:
    """`(params, batch, key) -> (sums, count, gradient of the mean loss)`.

    Args:
        loss: see `jaxdist.core.types.Loss`.
        accumulate: parts that the batch is taken in, one after the other; the result is that of the whole.
        compute: the dtype in which the loss sees the parameters, if another than theirs.

    >>> loss = lambda p, b, key: ({'loss': jnp.sum(p * b)}, b.size)
    >>> gradients(loss, 2, None)(jnp.ones(()), jnp.arange(4.0), jax.random.key(0))[2]
    Array(1.5, dtype=float32)
    """

    def part(params: Params, batch: Batch, key: jax.Array, of_the_mean: bool = True) -> Any:
        def objective(params: Params) -> tuple[jax.Array, Any]:
            sums, count = loss(cast_params(params, compute), batch, key)
            count = lax.stop_gradient(jnp.asarray(count, float))
            return sums['loss'] * (inverse(count) if of_the_mean else 1), (sums, count)

        (_, (sums, count)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return sums, count, grads

    def whole(params: Params, batch: Batch, key: jax.Array) -> Any:
        parts = _parts(batch, key, accumulate)
        sums, count, grads = _sum_of_parts(lambda one: part(params, one[0], one[1], of_the_mean=False), parts)
        return sums, count, jax.tree.map(lambda g: g * inverse(count).astype(g.dtype), grads)

    return whole if accumulate > 1 else part


def pullback(
    fn: Callable[[Params, Batch, jax.Array], Any], params: Params, batch: Batch, key: jax.Array, accumulate: int
) -> tuple[Any, Callable[[Any], Params]]:
    """`fn(params, batch, key)`, sums over the batch, and the function from what each of them counts to the gradient.

    Args:
        fn: gives a pytree of sums.
        params: where.
        batch: [B, ...] each.
        key: for `fn`.
        accumulate: parts that the batch is taken in, once for the sums and once for the gradient.

    >>> out, pull = pullback(lambda p, b, key: jnp.sum(p * b), jnp.ones(()), jnp.arange(4.0), jax.random.key(0), 2)
    >>> float(out), float(pull(jnp.float32(2.0)))
    (6.0, 12.0)
    """
    if accumulate == 1:
        out, back = jax.vjp(lambda params: fn(params, batch, key), params)
        return out, lambda counts: back(counts)[0]
    parts = _parts(batch, key, accumulate)
    total = lambda one: _sum_of_parts(one, parts)  # noqa: E731

    def pull(counts: Any) -> Params:
        return total(lambda part: jax.vjp(lambda params: fn(params, *part), params)[1](counts)[0])

    return total(lambda part: fn(params, *part)), pull


def _parts(batch: Batch, key: jax.Array, accumulate: int) -> tuple[Batch, jax.Array]:
    """The batch [B, ...] as [accumulate, B / accumulate, ...], and a key for each part."""
    cut = lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])  # noqa: E731
    return jax.tree.map(cut, batch), jax.random.split(key, accumulate)


def _sum_of_parts(one: Callable[[Any], Any], parts: Any) -> Any:
    # The sum starts from zeros, not from the first part: the program then has forward and backward once.
    add = lambda carry, part: (jax.tree.map(jnp.add, carry, one(part)), None)  # noqa: E731
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    return lax.scan(add, collectives.zeros(shapes), parts)[0]


def inverse(count: jax.Array) -> jax.Array:
    """1 / count, and 0 for a worker who has no example.

    >>> inverse(jnp.array([4.0, 0.0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    return jnp.where(count > 0, 1 / count, 0)


def cast_params(params: Params, compute: jax.typing.DTypeLike | None) -> Params:
    """The parameters as the loss sees them: real numbers in the dtype `compute`, if one is given.

    >>> cast_params({'w': jnp.ones(1)}, jnp.bfloat16)
    {'w': Array([1], dtype=bfloat16)}
    """
    if compute is None:
        return params
    return jax.tree.map(lambda p: p.astype(compute) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)
