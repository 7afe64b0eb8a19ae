"""Attention to keys and values that are all here."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, inline=False)  # a call by name, so that it is found in the program of a loss
def whole_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, at: jax.Array | None, of: jax.Array | None = None
) -> jax.Array:
    """Attention of queries [B, T, H, K] to keys and values [B, S, G, K], with the softmax in float32 or wider.

    Written out, since at contexts of 64 to 128 it took a tenth less time on CPU than `jax.nn.dot_product_attention`.

    Args:
        q: queries.
        k: keys.
        v: values.
        at: the positions of queries [T], of which each sees no later key; None if all see all.
        of: the positions of keys [S]; those of the queries if None.

    >>> x = jnp.ones((1, 2, 1, 4))
    >>> whole_attention(x, x, x, jnp.arange(2)).shape
    (1, 2, 1, 4)
    """
    mask = None if at is None else at[:, None] >= (at if of is None else of)
    weights = jax.nn.softmax(scores(q, k, mask))
    return merged(jnp.einsum('bgrts,bsgk->btgrk', weights.astype(v.dtype), v))


def scores(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Q k / sqrt(K) in float32 or wider, [B, G, H / G, T, S]; minus infinity where the mask [T, S] is False.

    >>> scores(jnp.ones((1, 2, 4, 4)), jnp.ones((1, 3, 2, 4)), None).shape
    (1, 2, 2, 2, 3)
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    out = jnp.einsum('btgrk,bsgk->bgrts', grouped(q, k), k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    return out if mask is None else jnp.where(mask, out, -jnp.inf)


def grouped(q: jax.Array, k: jax.Array) -> jax.Array:
    """Queries [B, T, H, K] as [B, T, G, H / G, K], by the head of keys that they see.

    >>> grouped(jnp.ones((1, 2, 4, 4)), jnp.ones((1, 3, 2, 4))).shape
    (1, 2, 2, 2, 4)
    """
    return q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])


def merged(x: jax.Array) -> jax.Array:
    """The inverse of `grouped`.

    >>> merged(jnp.ones((1, 2, 2, 2, 4))).shape
    (1, 2, 4, 4)
    """
    return x.reshape(*x.shape[:2], -1, x.shape[4])
