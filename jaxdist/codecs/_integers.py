"""Block-wise whole numbers times a scale: what `int8` and `int4` have in common."""

import jax
import jax.numpy as jnp

from jaxdist.codecs._blocks import in_blocks, largest, rounder, safe
from jaxdist.codecs.codec import Codec, Summed, padded
from jaxdist.core.bits import pack, unpack
from jaxdist.core.errors import InputError


def integers(name: str, bits: int, block: int, rounding: str) -> Codec:
    """A codec whose codes are -L to L, with L = 2**(bits - 1) - 1, times the block's largest magnitude over L.

    To add up on the way, W workers agree on scales and use the codes -m to m, with m the whole part of L / W.

    >>> c = integers('int4', 4, 2, 'nearest')
    >>> c.decode(c.encode(jnp.array([7.0, -2.2]), jax.random.key(0)), 2)
    Array([ 7., -2.], dtype=float32)
    """
    top = 2 ** (bits - 1) - 1
    round_off = rounder(name, rounding)

    def to_numbers(blocks: jax.Array, scale: jax.Array, most: int, key: jax.Array) -> jax.Array:
        numbers = jnp.clip(round_off(blocks / safe(scale), key), -most, most)
        return (numbers + most).astype(jnp.uint8)

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = largest(blocks) / top
        return to_numbers(blocks, scale, top, key), scale

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
            # An all-reduce of the largest may pass over NaN, not over infinity.
            found = largest(x.reshape(-1, block))[:, 0]
            return jnp.where(jnp.isnan(found), jnp.inf, found)

        def encode(x: jax.Array, agreed: jax.Array, shared: jax.Array, own: jax.Array) -> jax.Array:
            numbers = to_numbers(x.reshape(-1, block), agreed[:, None] / most, most, own).reshape(-1)
            # In words, because a TPU widens a sum of bytes to 32 bits each.
            return pack(jnp.pad(numbers, (0, -x.size % (32 // bits))), bits, jnp.uint32)

        def decode(total: jax.Array, agreed: jax.Array, shared: jax.Array, n: int, count: int) -> jax.Array:
            numbers = unpack(total, bits)[:n].reshape(-1, block).astype(jnp.float32) - count * most
            scale = jnp.where(jnp.isfinite(agreed), agreed / most, jnp.nan)
            return (numbers * scale[:, None]).reshape(-1)

        return Summed(lambda n: padded(n * bits // 8, 4), agree, encode, decode)

    return in_blocks(name, block, bits, to_codes, from_codes)._replace(summed=summed)
