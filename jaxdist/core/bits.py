"""Numbers as bytes: what a message is made of."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def to_bytes(x: jax.Array) -> jax.Array:
    """The bytes of `x` [..., n] of any dtype, as uint8 [..., n * itemsize]: the first byte of all, then the second.

    Numbers travel as bytes because a backend may widen any other dtype on the way (bf16 to f32 on CPU, say).

    >>> to_bytes(jnp.array([1.0], jnp.float32))
    Array([  0,   0, 128,  63], dtype=uint8)
    """
    width = jnp.dtype(x.dtype).itemsize
    whole = lax.bitcast_convert_type(x, f'uint{8 * width}')
    shifts = (8 * jnp.arange(width)).astype(whole.dtype)[:, None]
    return (whole[..., None, :] >> shifts).astype(jnp.uint8).reshape(*x.shape[:-1], -1)


def from_bytes(data: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The numbers whose bytes `data` uint8 [..., n * itemsize] holds, as `dtype` [..., n].

    >>> from_bytes(to_bytes(jnp.array([1.0, -2.0])), jnp.float32)
    Array([ 1., -2.], dtype=float32)
    """
    width = jnp.dtype(dtype).itemsize
    rows = data.reshape(*data.shape[:-1], width, -1).astype(f'uint{8 * width}')
    shifts = (8 * jnp.arange(width)).astype(rows.dtype)[:, None]
    return lax.bitcast_convert_type(jnp.bitwise_or.reduce(rows << shifts, axis=-2), dtype)


def pack(codes: jax.Array, bits: int, word: jax.typing.DTypeLike = jnp.uint8) -> jax.Array:
    """Small numbers side by side in words: `codes` [..., n] below 2**bits to `word` [..., n * bits / bits of a word].

    A word holds numbers that stand as far apart as there are words: neighbours in one take a TPU's compiler four times
    as long. XLA has types of 1, 2 and 4 bits, and sends them as whole bytes, or crashes on them, depending on the
    backend.

    >>> pack(jnp.array([1, 2, 3, 0], jnp.uint8), bits=2)
    Array([57], dtype=uint8)
    """
    each = 8 * jnp.dtype(word).itemsize // bits
    rows = codes.reshape(*codes.shape[:-1], each, -1).astype(word)
    return jnp.bitwise_or.reduce(rows << (bits * jnp.arange(each, dtype=word))[:, None], axis=-2)


def unpack(data: jax.Array, bits: int) -> jax.Array:
    """The inverse of `pack`: words [..., m] to the numbers in them, in the dtype of the words.

    >>> unpack(jnp.array([57], jnp.uint8), bits=2)
    Array([1, 2, 3, 0], dtype=uint8)
    """
    each = 8 * data.dtype.itemsize // bits
    rows = (data[..., None, :] >> (bits * jnp.arange(each, dtype=data.dtype))[:, None]) & (2**bits - 1)
    return rows.reshape(*data.shape[:-1], -1)


def flatten(leaves: Sequence[jax.Array]) -> jax.Array:
    """All entries in one float32 vector [n], so that many small tensors cross in one message.

    >>> flatten([jnp.ones((1, 2)), jnp.zeros(())])
    Array([1., 1., 0.], dtype=float32)
    """
    return jnp.concatenate([x.reshape(-1).astype(jnp.float32) for x in leaves])


def unflatten(vector: jax.Array, like: Sequence[jax.Array]) -> list[jax.Array]:
    """The inverse of `flatten`: pieces of `vector` [n] in the shapes of `like`, still float32.

    >>> unflatten(jnp.array([1.0, 1.0, 0.0]), [jnp.ones((1, 2)), jnp.zeros(())])
    [Array([[1., 1.]], dtype=float32), Array(0., dtype=float32)]
    """
    out, at = [], 0
    for x in like:
        n = math.prod(x.shape)
        out.append(vector[at : at + n].reshape(x.shape))
        at += n
    return out
