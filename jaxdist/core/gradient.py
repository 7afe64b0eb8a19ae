"""One worker's gradient of its mean loss, with gradient accumulation and a model state."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Partition, Whole
from jaxdist.core.types import Batch, Loss, Params, Variables


def gradients(
    loss: Loss, accumulate: int, compute: jax.typing.DTypeLike | None, partition: Partition = Whole()
) -> Callable[..., Any]:
    """A function `(params, state, batch, key) -> (sums, count, gradient of the mean loss, state)`, traced once.

    Args:
        loss: the loss; see `jaxdist.core.types.Loss`.
        accumulate: number of parts that the batch is split into, for gradient accumulation; the gradient does not
            change. A model state goes from part to part.
        compute: dtype to which parameters are cast for the loss, or None to keep theirs.
        partition: how the work is divided among the worker's devices. Each accumulates by itself.

    >>> loss = lambda p, b, key: ({'loss': jnp.sum(p * b)}, b.size)
    >>> gradients(loss, 2, None)(jnp.ones(()), (), jnp.arange(4.0), jax.random.key(0))[2]
    Array(1.5, dtype=float32)
    """
    own = partition.own_gradient
    in_parts = accumulate > 1 or bool(partition.axes)

    def one(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
        """`((terms, gradient), state)` on one device, of one part of its batch."""

        def objective(params: Params) -> tuple[jax.Array, Any]:
            sums, count, after = evaluate_loss(loss, params, state, batch, key)
            count = lax.stop_gradient(jnp.asarray(count, float))
            return sums['loss'] * (1 if in_parts else inverse(count)), (sums, count, after)

        (_, (sums, count, after)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return ((sums, count), conjugate(grads)), after

    def on_device(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
        def by_itself(seen: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
            assert own is not None
            return own(seen, batch, params, compute), state

        seen = partition.gather(params, compute, key)
        part = functools.partial(_in_dtypes, params, one) if own is None else by_itself
        if accumulate > 1:
            out, after = _sum_of_parts(functools.partial(part, seen), state, _parts(batch, key, accumulate))
        else:
            out, after = part(seen, state, batch, key)
        return out[0], partition.scatter(out[1], key), after

    def whole(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
        (sums, count), grads, after = partition.run(on_device, params, state, batch, key)
        if in_parts:
            grads = jax.tree.map(lambda g: g * inverse(count).astype(g.dtype), grads)
        return sums, count, grads, after

    # Types are found by several traces of a step; inlined, the gradient in it is traced once and is no call.
    return jax.jit(whole, inline=True)


def pullback(
    fn: Callable[[Params, Any, Batch, jax.Array], tuple[Any, Any]],
    params: Params,
    state: Any,
    batch: Batch,
    key: jax.Array,
    accumulate: int,
    compute: jax.typing.DTypeLike | None = None,
    partition: Partition = Whole(),
) -> tuple[Any, Any, Callable[[Any], Params]]:
    """The sums of a function, the model state after it, and its pullback: from weights of the sums to the gradient.

    With accumulation, or on several devices, every part is evaluated twice, since the weights are not known before all
    sums are.

    Args:
        fn: `(params, state, batch, key) -> (sums, state)`, with sums a pytree of sums over the batch.
        params: the parameters.
        state: the model state; () without one.
        batch: arrays [B, ...].
        key: the random key for `fn`.
        accumulate: number of parts that the batch is split into, for gradient accumulation.
        compute: dtype to which parameters are cast for `fn`, or None to keep theirs.
        partition: how the work is divided among the worker's devices.

    >>> fn = lambda p, state, b, key: (jnp.sum(p * b), state)
    >>> out, _, pull = pullback(fn, jnp.ones(()), (), jnp.arange(4.0), jax.random.key(0), 2)
    >>> float(out), float(pull(jnp.float32(2.0)))
    (6.0, 12.0)
    """
    if partition.own_gradient is not None:
        raise InputError(
            'stages and regather have the gradient of the loss alone: constraints need a layout without them'
        )
    if accumulate == 1 and not partition.axes:
        of_params = lambda params: fn(partition.gather(params, compute, key), state, batch, key)  # noqa: E731
        out, vjp, after = jax.vjp(of_params, params, has_aux=True)
        return out, after, lambda weights: conjugate(vjp(weights)[0])

    def sums(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
        seen = partition.gather(params, compute, key)
        out, after = _sum_of_parts(lambda *part: fn(seen, *part), state, _parts(batch, key, accumulate))
        return out, (), after

    def pull(weights: Any) -> Params:
        def one(seen: Params, *part: Any) -> Any:
            out, vjp, after = jax.vjp(lambda params: fn(params, *part), seen, has_aux=True)
            # A cotangent has the type of what it belongs to.
            return ((), conjugate(vjp(jax.tree.map(collectives.as_varying, weights, out))[0])), after

        def gradient(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
            part = functools.partial(_in_dtypes, params, one, partition.gather(params, compute, key))
            (_, grads), after = _sum_of_parts(part, state, _parts(batch, key, accumulate))
            return (), partition.scatter(grads, key), after

        grads: Params = partition.run(gradient, params, state, batch, key)[1]
        return grads

    out, _, after = partition.run(sums, params, state, batch, key, graded=False)
    return out, after, pull


def _in_dtypes(params: Params, one: Callable[..., Any], *args: Any) -> Any:
    """`one(*args)`, which returns `((terms, gradient), state)`, with the gradient in the dtypes of the parameters."""
    (terms, grads), after = one(*args)
    return (terms, jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)), after


def evaluate_loss(
    loss: Loss, params: Params, state: Any, batch: Batch, key: jax.Array
) -> tuple[dict[str, jax.Array], Any, Any]:
    """The sums, the count and the model state that the loss returns; the state is () for a model without one.

    >>> evaluate_loss(lambda p, b, key: ({'loss': p * b}, 1), 2.0, (), 3.0, jax.random.key(0))
    ({'loss': 6.0}, 1, ())
    """
    if has_state(state):
        sums, count, state = loss(Variables(params, state), batch, key)
        return sums, count, state
    sums, count = loss(params, batch, key)
    return sums, count, state


def as_seen(params: Params, state: Any) -> Params | Variables:
    """What a loss gets: the parameters, or `Variables` of a model with a state.

    >>> as_seen(1.0, ())
    1.0
    """
    return Variables(params, state) if has_state(state) else params


def has_state(state: Any) -> bool:
    """Whether this is the state of a model that has one; () stands for none.

    >>> has_state(()), has_state({'mean': 0.0})
    (False, True)
    """
    return not (isinstance(state, tuple) and state == ())


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


def _sum_of_parts(one: Callable[..., tuple[Any, Any]], state: Any, parts: Any) -> tuple[Any, Any]:
    """The sums of `one(state, *part) -> (terms, state)` over the parts, and the last state."""

    def add(carry: Any, part: Any) -> Any:
        total, state = carry
        terms, state = one(state, *part)
        return (jax.tree.map(jnp.add, total, terms), state), None

    first = jax.tree.map(lambda x: x[0], parts)
    state = collectives.fixed_point(lambda state: one(state, *first)[1], state)
    # The sum starts from zeros, not from the first part: the program then has forward and backward once.
    shapes = jax.eval_shape(one, state, *first)[0]
    return lax.scan(add, (collectives.zeros(shapes), state), parts)[0]


def inverse(count: jax.Array) -> jax.Array:
    """1 / count; 0 for a worker without examples.

    >>> inverse(jnp.array([4.0, 0.0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    return jnp.where(count > 0, 1 / count, 0)
