"""One worker's gradient of its mean loss, with gradient accumulation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.types import Batch, Loss, Params


def gradients(loss: Loss, accumulate: int, compute: jax.typing.DTypeLike | None) -> Callable[..., Any]:
    """A function `(params, batch, key) -> (sums, count, gradient of the mean loss)`.

    Args:
        loss: the loss; see `jaxdist.core.types.Loss`.
        accumulate: number of parts that the batch is split into, for gradient accumulation; the result does not change.
        compute: dtype to which parameters are cast for the loss, or None to keep theirs.

    >>> loss = lambda p, b, key: ({'loss': jnp.sum(p * b)}, b.size)
    >>> gradients(loss, 2, None)(jnp.ones(()), jnp.arange(4.0), jax.random.key(0))[2]
    Array(1.5, dtype=float32)
    """

    def part(params: Params, batch: Batch, key: jax.Array, of_mean: bool = True) -> Any:
        def objective(params: Params) -> tuple[jax.Array, Any]:
            sums, count = loss(cast_params(params, compute), batch, key)
            count = lax.stop_gradient(jnp.asarray(count, float))
            return sums['loss'] * (inverse(count) if of_mean else 1), (sums, count)

        (_, (sums, count)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return sums, count, conjugate(grads)

    def whole(params: Params, batch: Batch, key: jax.Array) -> Any:
        parts = _parts(batch, key, accumulate)
        sums, count, grads = _sum_of_parts(lambda one: part(params, one[0], one[1], of_mean=False), parts)
        return sums, count, jax.tree.map(lambda g: g * inverse(count).astype(g.dtype), grads)

    return whole if accumulate > 1 else part


def pullback(
    fn: Callable[[Params, Batch, jax.Array], Any], params: Params, batch: Batch, key: jax.Array, accumulate: int
) -> tuple[Any, Callable[[Any], Params]]:
    """The sums `fn(params, batch, key)` and their pullback: a function from weights of the sums to the gradient.

    With accumulation every part is evaluated twice, since the weights are not known before all sums are.

    Args:
        fn: returns a pytree of sums over the batch.
        params: the parameters.
        batch: arrays [B, ...].
        key: the random key for `fn`.
        accumulate: number of parts that the batch is split into, for gradient accumulation.

    >>> out, pull = pullback(lambda p, b, key: jnp.sum(p * b), jnp.ones(()), jnp.arange(4.0), jax.random.key(0), 2)
    >>> float(out), float(pull(jnp.float32(2.0)))
    (6.0, 12.0)
    """
    if accumulate == 1:
        out, vjp = jax.vjp(lambda params: fn(params, batch, key), params)
        return out, lambda weights: conjugate(vjp(weights)[0])
    parts = _parts(batch, key, accumulate)
    total = lambda one: _sum_of_parts(one, parts)  # noqa: E731

    def pull(weights: Any) -> Params:
        return conjugate(total(lambda part: jax.vjp(lambda params: fn(params, *part), params)[1](weights)[0]))

    return total(lambda part: fn(params, *part)), pull


def conjugate(grads: Params) -> Params:
    """The gradient along which a function increases most, from JAX's: of complex parameters that is its conjugate.

    >>> conjugate(jax.grad(lambda z: jnp.abs(z) ** 2)(jnp.complex64(1 + 2j)))
    Array(2.+4.j, dtype=complex64)
    """
    return jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads)


def _parts(batch: Batch, key: jax.Array, accumulate: int) -> tuple[Batch, jax.Array]:
    """The batch [B, ...] as [accumulate, B / accumulate, ...], and a key for each part."""
    split = lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])  # noqa: E731
    return jax.tree.map(split, batch), jax.random.split(key, accumulate)


def _sum_of_parts(one: Callable[[Any], Any], parts: Any) -> Any:
    # The sum starts from zeros, not from the first part: the program then has forward and backward once.
    add = lambda carry, part: (jax.tree.map(jnp.add, carry, one(part)), None)  # noqa: E731
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    return lax.scan(add, collectives.zeros(shapes), parts)[0]


def inverse(count: jax.Array) -> jax.Array:
    """1 / count; 0 for a worker without examples.

    >>> inverse(jnp.array([4.0, 0.0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    return jnp.where(count > 0, 1 / count, 0)


def cast_params(params: Params, compute: jax.typing.DTypeLike | None) -> Params:
    """The parameters with real numbers cast to the dtype `compute`; unchanged if it is None.

    >>> cast_params({'w': jnp.ones(1)}, jnp.bfloat16)
    {'w': Array([1], dtype=bfloat16)}
    """
    if compute is None:
        return params
    return jax.tree.map(lambda p: p.astype(compute) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)
