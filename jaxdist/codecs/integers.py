"""Block-wise whole numbers times a scale, in 8, 4 and 2 bits: what `int8`, `int4` and `int2` have in common."""

import jax
import jax.numpy as jnp

from jaxdist.codecs.blocks import in_blocks, largest, rounder, safe
from jaxdist.codecs.codec import Codec


def integers(name: str, bits: int, block: int, rounding: str) -> Codec:
    """A codec whose codes are -L to L, with L = 2**(bits - 1) - 1, times the block's largest magnitude over L.

    >>> c = integers('int4', 4, 2, 'nearest')
    >>> c.decode(c.encode(jnp.array([7.0, -2.2]), jax.random.key(0)), 2)
    Array([ 7., -2.], dtype=float32)
    """
    top = 2 ** (bits - 1) - 1
    round_off = rounder(name, rounding)

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = largest(blocks) / top
        numbers = jnp.clip(round_off(blocks / safe(scale), key), -top, top)
        return (numbers + top).astype(jnp.uint8), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (codes.astype(jnp.float32) - top) * scale

    return in_blocks(name, block, bits, to_codes, from_codes)
