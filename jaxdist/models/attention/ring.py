"""Ring attention: keys and values go round the devices that share a sequence, and no device has more than a block.

Liu, Zaharia and Abbeel 2023 (arXiv 2310.01889); each device has an early and a late piece, so that under a causal mask
all have the same to compute, and half of what a full mask leaves (compare Brandon et al. 2023, arXiv 2311.09431). The
softmax is kept up as blocks arrive (Milakov and Gimelshein 2018, arXiv 1805.02867). In the backward pass they go round
again, together with their gradients.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.models.attention.heads import over_heads
from jaxdist.models.attention.whole import grouped, merged, scores
from jaxdist.models.attention.zigzag import AXIS, places

Use = Callable[..., Any]
"""`(q, k, v, mask, which queries, which keys, state) -> state` on a part of a block."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def ring(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Attention to keys and values that go round.

    Each of n devices sends n - 1 times the bytes of its keys and values forward; backward as many, and n times those
    of their gradients.

    Args:
        q: this device's queries [B, t, H, K].
        k: its keys [B, t, G, K].
        v: its values [B, t, G, K].
        causal: see `attend`.

    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = lambda q, k: ring(q, k, k, False)
    >>> x, spec = jnp.arange(16.0).reshape(1, 8, 1, 2), P(None, AXIS)
    >>> jax.shard_map(code, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(0 * x, x)[0, 0, 0]
    Array([7., 8.], dtype=float32)
    """
    return _saved(q, k, v, causal)[0]


def _saved(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> tuple[jax.Array, Any]:
    out, log_total = over_heads(functools.partial(_forward, causal), k.shape[2])(q, k, v)
    return out, (q, k, v, out, log_total)


def _gradient(causal: bool, saved: Any, dout: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    grads: tuple[jax.Array, jax.Array, jax.Array]
    grads = over_heads(functools.partial(_backward, causal), saved[1].shape[2])(*saved, dout)
    return grads


def _forward(causal: bool, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The output, and the logarithm of the softmax's denominator [B, t, G, H / G]."""

    def use(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, at: slice, _: slice, state: Any) -> Any:
        out, top, total = state
        s = scores(q, k, mask)
        new = jnp.maximum(top[..., at], s.max(-1))
        p, shrink = jnp.exp(s - new[..., None]), jnp.exp(top[..., at] - new)
        added = jnp.einsum('bgrts,bsgk->btgrk', p.astype(v.dtype), v, preferred_element_type=s.dtype)
        out = out.at[:, at].set(out[:, at] * _by_query(shrink) + added)
        return out, top.at[..., at].set(new), total.at[..., at].set(total[..., at] * shrink + p.sum(-1))

    zero = jnp.zeros_like(grouped(q, k), jnp.promote_types(q.dtype, jnp.float32))
    rows = jnp.moveaxis(zero[..., 0], 1, -1)
    state = _varying((zero, jnp.full_like(rows, -jnp.inf), rows), (q, k, v))
    n = collectives.axis_size(AXIS)

    def step(carry: Any, turn: Any) -> Any:
        block, state = carry
        passed = _passed(block)  # the next block is in flight while this one is used
        return (passed, _block(turn, causal, use, (q, *block), state)), None

    (k, v), state = lax.scan(step, ((k, v), state), jnp.arange(n - 1))[0]
    out, top, total = _block(n - 1, causal, use, (q, k, v), state)
    return merged(out / _by_query(total)).astype(v.dtype), jnp.moveaxis(top + jnp.log(total), -1, 1)


def _backward(causal: bool, *saved: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, log_total, dout = saved
    log_total = jnp.moveaxis(log_total, 1, -1)
    # Without the barrier the compiler may take both turns for one, and keep every block that passes.
    k, v = lax.optimization_barrier((k, v))
    wide = log_total.dtype
    dout = grouped(dout, k)
    delta = jnp.einsum('btgrk,btgrk->bgrt', dout, grouped(out, k), preferred_element_type=wide)
    scale = q.shape[-1] ** -0.5

    def use(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, at: slice, of: slice, state: Any) -> Any:
        dq, dk, dv = state
        product = functools.partial(jnp.einsum, preferred_element_type=wide)
        p = jnp.exp(scores(q, k, mask) - log_total[..., at, None])
        ds = p * (product('btgrk,bsgk->bgrts', dout[:, at], v) - delta[..., at, None]) * scale
        ds, p = ds.astype(k.dtype), p.astype(v.dtype)
        dq = dq.at[:, at].add(product('bgrts,bsgk->btgrk', ds, k))
        dk = dk.at[:, of].add(product('bgrts,btgrk->bsgk', ds, grouped(q, k)).astype(dk.dtype))
        return dq, dk, dv.at[:, of].add(product('bgrts,btgrk->bsgk', p, dout[:, at]).astype(dv.dtype))

    n = collectives.axis_size(AXIS)
    dq = _varying(jnp.zeros_like(grouped(q, k), wide), (q, k, v, dout))
    grads = _varying((jnp.zeros_like(k), jnp.zeros_like(v)), (q, k, v, dout))

    def step(carry: Any, turn: Any) -> Any:
        block, dq, grads = carry
        passed = _passed(block)
        dq, *grads = _block(turn, causal, use, (q, *block), (dq, *grads))
        return (passed, dq, _passed(tuple(grads))), None

    (k, v), dq, grads = lax.scan(step, ((k, v), dq, grads), jnp.arange(n - 1))[0]
    dq, *grads = _block(n - 1, causal, use, (q, k, v), (dq, *grads))
    dk, dv = _passed(tuple(grads))
    return merged(dq).astype(q.dtype), dk, dv


ring.defvjp(_saved, _gradient)


def _block(turn: jax.Array | int, causal: bool, use: Use, block: tuple[jax.Array, ...], state: Any) -> Any:
    """The state after this device has used what the mask leaves of the block that is here after so many turns.

    Of the device's block that is what lies below the diagonal; of an earlier device's keys the first half, which all
    queries see; of a later one's all, which the second half of the queries sees.
    """
    (q, k, v), whole = block, slice(None)
    n, me, half = collectives.axis_size(AXIS), collectives.axis_index(AXIS), q.shape[1] // 2
    if not causal:
        return use(q, k, v, None, whole, whole, state)
    at = places(0, 1, 2 * half)
    own = lambda q, k, v, state: use(q, k, v, at[:, None] >= at, whole, whole, state)  # noqa: E731
    earlier = lambda q, k, v, state: use(q, k[:, :half], v[:, :half], None, whole, slice(half), state)  # noqa: E731
    later = lambda q, k, v, state: use(q[:, half:], k, v, None, slice(half, None), whole, state)  # noqa: E731
    sender = (me - turn) % n
    return lax.switch((sender < me) + 2 * (sender > me), [own, earlier, later], q, k, v, state)


def _passed(tree: Any) -> Any:
    """What the device before has."""
    n = collectives.axis_size(AXIS)
    return lax.ppermute(tree, AXIS, [(device, (device + 1) % n) for device in range(n)])


def _by_query(x: jax.Array) -> jax.Array:
    """[B, G, H / G, t] as [B, t, G, H / G, 1]."""
    return jnp.moveaxis(x, -1, 1)[..., None]


def _varying(tree: Any, like: tuple[jax.Array, ...]) -> Any:
    """The tree, typed as different on all devices on which one of these arrays may be."""
    for x in like:
        tree = jax.tree.map(lambda leaf, x=x: collectives.as_varying(leaf, x), tree)
    return tree
