"""Conversion of numbers to bytes and back, for messages."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def to_bytes(x: jax.Array) -> jax.Array:
    """The bytes of `x` [..., n] of any dtype as uint8 [..., n * itemsize]: the lowest bytes of all numbers come first.

    Numbers are sent as bytes because a backend may widen other dtypes in a collective (on CPU bf16 to f32, say).

    >>> to_bytes(jnp.array([1.0], jnp.float32))
    Array([  0,   0, 128,  63], dtype=uint8)
    """
    width = jnp.dtype(x.dtype).itemsize
    whole = lax.bitcast_convert_type(x, f'uint{8 * width}')
    shifts = (8 * jnp.arange(width)).astype(whole.dtype)[:, None]
    return (whole[..., None, :] >> shifts).astype(jnp.uint8).reshape(*x.shape[:-1], -1)


def from_bytes(data: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The inverse of `to_bytes`: uint8 [..., n * itemsize] to numbers [..., n] of this dtype.

    >>> from_bytes(to_bytes(jnp.array([1.0, -2.0])), jnp.float32)
    Array([ 1., -2.], dtype=float32)
    """
    width = jnp.dtype(dtype).itemsize
    rows = data.reshape(*data.shape[:-1], width, -1).astype(f'uint{8 * width}')
    shifts = (8 * jnp.arange(width)).astype(rows.dtype)[:, None]
    return lax.bitcast_convert_type(jnp.bitwise_or.reduce(rows << shifts, axis=-2), dtype)


def pack(codes: jax.Array, bits: int, word: jax.typing.DTypeLike = jnp.uint8) -> jax.Array:
    """Packs numbers below 2**bits into words: `codes` [..., n] to `word` [..., n * bits / bits of a word].

    The numbers in a word are m apart, if there are m words: with neighbours in a word a TPU's compiler takes four times
    as long. XLA's own types of 1, 2 and 4 bits are not used, since backends send them as whole bytes or crash on them.

    Args:
        codes: unsigned numbers below 2**bits.
        bits: bits of each number; divides the bits of a word.
        word: the unsigned dtype of a word.

    >>> pack(jnp.array([1, 2, 3, 0], jnp.uint8), bits=2)
    Array([57], dtype=uint8)
    """
    each = 8 * jnp.dtype(word).itemsize // bits
    rows = codes.reshape(*codes.shape[:-1], each, -1).astype(word)
    return jnp.bitwise_or.reduce(rows << (bits * jnp.arange(each, dtype=word))[:, None], axis=-2)


def unpack(data: jax.Array, bits: int) -> jax.Array:
    """The inverse of `pack`: words [..., m] to their numbers, in the dtype of the words.

    >>> unpack(jnp.array([57], jnp.uint8), bits=2)
    Array([1, 2, 3, 0], dtype=uint8)
    """
    each = 8 * data.dtype.itemsize // bits
    rows = (data[..., None, :] >> (bits * jnp.arange(each, dtype=data.dtype))[:, None]) & (2**bits - 1)
    return rows.reshape(*data.shape[:-1], -1)


def flatten(leaves: Sequence[jax.Array]) -> jax.Array:
    """All entries in one float32 vector [n], so that many small tensors are sent in one message.

    >>> flatten([jnp.ones((1, 2)), jnp.zeros(())])
    Array([1., 1., 0.], dtype=float32)
    """
    return jnp.concatenate([x.reshape(-1).astype(jnp.float32) for x in leaves])


def unflatten(vector: jax.Array, like: Sequence[jax.Array]) -> list[jax.Array]:
    """The inverse of `flatten`: `vector` [n] split into arrays with the shapes of `like`; they stay float32.

    >>> unflatten(jnp.array([1.0, 1.0, 0.0]), [jnp.ones((1, 2)), jnp.zeros(())])
    [Array([[1., 1.]], dtype=float32), Array(0., dtype=float32)]
    """
    out, at = [], 0
    for x in like:
        n = math.prod(x.shape)
        out.append(vector[at : at + n].reshape(x.shape))
        at += n
    return out
