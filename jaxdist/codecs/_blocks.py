"""Block-wise codecs: each entry becomes a code of a few bits, and each block has a float32 scale."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdist.codecs.codec import LANES, Codec, padded
from jaxdist.core.bits import from_bytes, pack, to_bytes, unpack
from jaxdist.core.errors import InputError

ToCodes = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
PartToCodes = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
FromCodes = Callable[[jax.Array, jax.Array], jax.Array]


def in_blocks(name: str, block: int, bits: int, to_codes: ToCodes, from_codes: FromCodes) -> Codec:
    """A codec from functions that quantise and dequantise blocks. Packed codes and scales share one message.

    Padding must not change the scales: `in_part_blocks` is for scales that depend on how many entries there are.

    Args:
        name: the codec's name, for error messages.
        block: entries that share a scale.
        bits: bits of a code: 1, 2, 4 or 8.
        to_codes: `(float32 [b, block], key) -> (uint8 [b, block], scale float32 [b, 1])`. The scale of a block with a
            non-finite entry must be non-finite too, so that the receiver's guard rejects the step.
        from_codes: `(uint8 [b, block], scale [b, 1]) -> float32 [b, block]`.

    Raises:
        InputError: the block is below 1, or does not fill whole bytes.

    >>> import numpy as np
    >>> whole = in_blocks(
    ...     'whole', 4, 8, lambda x, key: (x.astype('uint8'), x[:, :1]), lambda codes, scale: jnp.float32(codes)
    ... )
    >>> whole.size(8), jax.jit(lambda x: whole.decode(whole.encode(x, jax.random.key(0)), 4))(np.arange(4.0))
    (512, Array([0., 1., 2., 3.], dtype=float32))
    """
    return in_part_blocks(name, block, bits, lambda blocks, real, key: to_codes(blocks, key), from_codes)._replace(
        encode_part=None
    )


def in_part_blocks(name: str, block: int, bits: int, to_codes: PartToCodes, from_codes: FromCodes) -> Codec:
    """`in_blocks` with `to_codes(blocks, real, key)`; of the entries [b, block], those that are not `real` are padding.

    >>> import numpy as np
    >>> mean = lambda x, real, key: (0 * x.astype('uint8'), jnp.sum(x, 1, keepdims=True) / jnp.sum(real, 1)[:, None])
    >>> means = in_part_blocks('means', 4, 8, mean, lambda codes, scale: codes + scale)
    >>> roundtrip = lambda x, real: means.decode(means.message(x, real, jax.random.key(0)), 4)
    >>> jax.jit(roundtrip)(np.float32([1, 3, 0, 0]), np.array([True, True, False, False]))
    Array([2., 2., 2., 2.], dtype=float32)
    """
    if block < 1:
        raise InputError(f'{name}: block={block} must be 1 or more')
    if block * bits % 8:
        raise InputError(f'{name}: block={block} must be a multiple of {8 // bits}, to fill whole bytes')
    width = block * bits // 8

    def encode_part(x: jax.Array, real: jax.Array, key: jax.Array) -> jax.Array:
        codes, scale = to_codes(x.reshape(-1, block), real.reshape(-1, block), key)
        message = jnp.concatenate([pack(codes, bits), to_bytes(scale)], axis=1).reshape(-1)
        return jnp.pad(message, (0, size(x.size) - message.size))

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        return encode_part(x, jnp.ones(x.shape, bool), key)

    def decode(message: jax.Array, n: int) -> jax.Array:
        rows = message[: n // block * (width + 4)].reshape(-1, width + 4)
        scale = from_bytes(rows[:, width:], jnp.float32)
        return from_codes(unpack(rows[:, :width], bits), scale).reshape(-1)

    def size(n: int) -> int:
        return block_bytes(n, block, bits)

    return Codec(block, size, encode, decode, encode_part=encode_part)


def block_bytes(n: int, block: int, bits: int) -> int:
    """Bytes of a message of n entries: `bits` per entry and 4 bytes per block, padded to a multiple of `LANES`.

    >>> block_bytes(512, block=256, bits=8)
    1024
    """
    return padded(n // block * (block * bits // 8 + 4), LANES)


def rounder(name: str, rounding: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`(x, key) -> whole numbers`: rounding to nearest, or stochastic (unbiased) rounding to one of two neighbours.

    Args:
        name: the codec's name, for error messages.
        rounding: 'nearest' or 'stochastic'.

    Raises:
        InputError: there is no such rounding.

    >>> import numpy as np
    >>> jax.jit(rounder('int8', 'nearest'))(np.float32([1.4, -1.6]), jax.random.key(0))
    Array([ 1., -2.], dtype=float32)
    """
    if rounding == 'nearest':
        return lambda x, key: jnp.floor(x + 0.5)
    if rounding == 'stochastic':
        return lambda x, key: jnp.floor(x + jax.random.uniform(key, x.shape))
    raise InputError(f"{name}: rounding={rounding!r} must be 'nearest' or 'stochastic'")


def largest(blocks: jax.Array) -> jax.Array:
    """The largest magnitude of each block, [b, 1]; NaN where an entry is not finite.

    >>> import numpy as np
    >>> jax.jit(largest)(np.float32([[1, -3]]))
    Array([[3.]], dtype=float32)
    """
    top = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
    # Every entry is tested, because on CPU XLA's maximum ignores NaN in some programs.
    return jnp.where(jnp.all(jnp.isfinite(blocks), axis=1, keepdims=True), top, jnp.nan)


def safe(scale: jax.Array) -> jax.Array:
    """The scale as a divisor: 1 where it is 0.

    >>> import numpy as np
    >>> jax.jit(safe)(np.float32([0, 2]))
    Array([1., 2.], dtype=float32)
    """
    return jnp.where(scale == 0, 1, scale)


def coins(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A random bit for each entry of blocks [b, block], as bools.

    >>> coins(jax.random.key(0), (3, 12)).shape
    (3, 12)
    """
    words = jax.random.bits(key, (shape[0], padded(shape[1], 8) // 8), jnp.uint8)
    return unpack(words, 1)[:, : shape[1]].astype(bool)


def mean_magnitude(blocks: jax.Array, real: jax.Array) -> jax.Array:
    """The mean magnitude of each block's real entries, [b, 1]; 0 without any. Padding must be zero.

    >>> import numpy as np
    >>> jax.jit(mean_magnitude)(np.float32([[1, -3, 0, 0]]), np.array([[True, True, False, False]]))
    Array([[2.]], dtype=float32)
    """
    shift = 2.0 ** -blocks.shape[1].bit_length()  # exact, and the sum of large entries does not overflow
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return jnp.sum(jnp.abs(blocks) * shift, axis=1, keepdims=True) / (count * shift)
