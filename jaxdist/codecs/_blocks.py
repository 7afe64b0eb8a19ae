"""Codecs that work on blocks: each entry becomes a code of a few bits, each block has a float32 scale beside them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdist.codecs.codec import LANES, Codec, padded
from jaxdist.core.bits import from_bytes, pack, to_bytes, unpack
from jaxdist.core.errors import InputError

ToCodes = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
FromCodes = Callable[[jax.Array, jax.Array], jax.Array]


def in_blocks(name: str, block: int, bits: int, to_codes: ToCodes, from_codes: FromCodes) -> Codec:
    """A codec from what it does to blocks. Codes are packed, scales travel in the same message.

    Args:
        name: of the codec, for messages.
        block: entries that share a scale.
        bits: of a code: 1, 2, 4 or 8.
        to_codes: `(float32 [b, block], key) -> (uint8 [b, block], scale float32 [b, 1])`. Where a block holds a number
            that is not finite, the scale must not be finite either, so that the receiver learns of it.
        from_codes: `(uint8 [b, block], scale [b, 1]) -> float32 [b, block]`.

    Raises:
        InputError: a block that does not fill whole bytes.

    >>> whole = in_blocks(
    ...     'whole', 4, 8, lambda x, key: (x.astype('uint8'), x[:, :1]), lambda codes, scale: jnp.float32(codes)
    ... )
    >>> whole.size(8), whole.decode(whole.encode(jnp.arange(4.0), jax.random.key(0)), 4)
    (512, Array([0., 1., 2., 3.], dtype=float32))
    """
    if block < 1:
        raise InputError(f'{name}: block={block} must be 1 or more')
    if block * bits % 8:
        raise InputError(f'{name}: block={block} must be a multiple of {8 // bits}, to fill whole bytes')
    width = block * bits // 8

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        codes, scale = to_codes(x.reshape(-1, block), key)
        message = jnp.concatenate([pack(codes, bits), to_bytes(scale)], axis=1).reshape(-1)
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        rows = message[: n // block * (width + 4)].reshape(-1, width + 4)
        scale = from_bytes(rows[:, width:], jnp.float32)
        return from_codes(unpack(rows[:, :width], bits), scale).reshape(-1)

    def size(n: int) -> int:
        return block_bytes(n, block, bits)

    return Codec(block, size, encode, decode)


def block_bytes(n: int, block: int, bits: int) -> int:
    """The formula for n entries: `bits` each and 4 bytes a block, in whole lanes.

    >>> block_bytes(512, block=256, bits=8)
    1024
    """
    return padded(n // block * (block * bits // 8 + 4), LANES)


def rounder(name: str, rounding: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`(x, key) -> whole numbers`, to the nearest one or, at random, to one of the two beside so that the mean is
    right.

    Raises:
        InputError: a rounding that does not exist.

    >>> rounder('int8', 'nearest')(jnp.array([1.4, -1.6]), jax.random.key(0))
    Array([ 1., -2.], dtype=float32)
    """
    if rounding == 'nearest':
        return lambda x, key: jnp.floor(x + 0.5)
    if rounding == 'stochastic':
        return lambda x, key: jnp.floor(x + jax.random.uniform(key, x.shape))
    raise InputError(f"{name}: rounding={rounding!r} must be 'nearest' or 'stochastic'")


def largest(blocks: jax.Array) -> jax.Array:
    """The largest magnitude of each block [b, 1]; NaN where a number in it is not finite.

    That is asked of each number: on CPU, XLA's maximum passes over NaN in some programs.

    >>> largest(jnp.array([[1.0, -3.0]]))
    Array([[3.]], dtype=float32)
    """
    top = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
    return jnp.where(jnp.all(jnp.isfinite(blocks), axis=1, keepdims=True), top, jnp.nan)


def safe(scale: jax.Array) -> jax.Array:
    """The scale to divide by: 1 where it is 0.

    >>> safe(jnp.array([0.0, 2.0]))
    Array([1., 2.], dtype=float32)
    """
    return jnp.where(scale == 0, 1, scale)
