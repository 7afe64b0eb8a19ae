"""Two bits an entry: four levels at equal distances, none of them zero (as the uniform quantiser of Max 1960)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec

BOUNDARY = 1.25
"""Where a magnitude counts as large, over the block's mean magnitude: for normal numbers 0.996 standard deviations,
where Max's table for four equidistant levels has it.
"""


@codec(
    paper='Max 1960, Quantizing for Minimum Distortion, table II',
    examples={
        'int2()': (laws.contracts(0.8), laws.idempotent(), laws.takes(lambda n: block_bytes(n, 64, 2))),
        'int2(block=512)': (laws.contracts(0.8), laws.takes(lambda n: block_bytes(n, 512, 2))),
    },
)
def int2(block: int = 64) -> Codec:
    """Each entry becomes -3, -1, 1 or 3 times the scale with the least squared error for these codes.

    Of normal numbers an eighth of the squared norm is lost, where `sign` loses a third and three levels scaled by the
    largest lose more than half. The scale is fitted, so the error is never larger than the block, as feedback needs it.

    Args:
        block: entries that share a scale; a multiple of 4.

    Raises:
        InputError: a block that does not fill whole bytes.

    >>> c = int2(block=4)
    >>> c.decode(c.encode(jnp.array([1.0, -3.0, 3.0, -1.0]), jax.random.key(0)), 4)
    Array([ 1., -3.,  3., -1.], dtype=float32)
    """

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = jnp.abs(blocks)
        level = jnp.where(size >= BOUNDARY * jnp.mean(size, axis=1, keepdims=True), 3, 1)
        scale = jnp.sum(level * size, axis=1, keepdims=True) / jnp.sum(level**2, axis=1, keepdims=True)
        codes = jnp.where(blocks < 0, -level, level)
        return ((codes + 3) // 2).astype(jnp.uint8), jnp.where(jnp.isfinite(scale), scale, jnp.nan)

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (2 * codes.astype(jnp.float32) - 3) * scale

    return in_blocks('int2', block, 2, to_codes, from_codes)
