"""Block-wise integers times a scale, shared by `int8` and `int4`."""

import jax
import jax.numpy as jnp

from jaxdist.codecs._blocks import in_blocks, largest, rounder, safe
from jaxdist.codecs.codec import Codec, Summed, padded
from jaxdist.core.bits import pack, unpack
from jaxdist.core.errors import InputError


def integers(name: str, bits: int, block: int, rounding: str) -> Codec:
    """A codec of codes -L to L, with L = 2**(bits - 1) - 1, and the scale max|x| / L of each block.

    Its messages are summable: W workers then share the largest scale and use the codes -m to m, with m = floor(L / W).

    Args:
        name: the codec's name, for error messages.
        bits: bits of a code: 4 or 8.
        block: entries that share a scale.
        rounding: 'nearest' or 'stochastic'.

    Raises:
        InputError: the block does not fill whole bytes, or there is no such rounding; when summed, W is above L.

    >>> import numpy as np
    >>> c = integers('int4', 4, 2, 'nearest')
    >>> jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 2))(np.float32([7, -2.2]))
    Array([ 7., -2.], dtype=float32)
    """
    top = 2 ** (bits - 1) - 1
    round_off = rounder(name, rounding)

    def quantise(blocks: jax.Array, scale: jax.Array, most: int, key: jax.Array) -> jax.Array:
        numbers = jnp.clip(round_off(blocks / safe(scale), key), -most, most)
        return (numbers + most).astype(jnp.uint8)

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = largest(blocks) / top
        return quantise(blocks, scale, top, key), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (codes.astype(jnp.float32) - top) * scale

    def summed(workers: int) -> Summed:
        most = top // workers
        if most < 1:
            raise InputError(
                f"exchange='all_reduce': the sum of {workers} workers' {name} numbers does not fit {bits} bits; "
                f'{top} workers at most, or another exchange'
            )

        def agree(x: jax.Array) -> jax.Array:
            # An all-reduce of the maximum may ignore NaN, but not infinity.
            magnitudes = largest(x.reshape(-1, block))[:, 0]
            return jnp.where(jnp.isnan(magnitudes), jnp.inf, magnitudes)

        def encode(x: jax.Array, agreed: jax.Array, shared: jax.Array, own: jax.Array) -> jax.Array:
            numbers = quantise(x.reshape(-1, block), agreed[:, None] / most, most, own).reshape(-1)
            # Packed into 32-bit words, because a TPU widens each byte of a sum to 32 bits.
            return pack(jnp.pad(numbers, (0, -x.size % (32 // bits))), bits, jnp.uint32)

        def decode(total: jax.Array, agreed: jax.Array, shared: jax.Array, n: int, count: int) -> jax.Array:
            numbers = unpack(total, bits)[:n].reshape(-1, block).astype(jnp.float32) - count * most
            scale = jnp.where(jnp.isfinite(agreed), agreed / most, jnp.nan)
            return (numbers * scale[:, None]).reshape(-1)

        return Summed(lambda n: padded(n * bits // 8, 4), agree, encode, decode)

    return in_blocks(name, block, bits, to_codes, from_codes)._replace(summed=summed)
