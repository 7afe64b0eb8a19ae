"""A uniform quantiser of 2 bits per entry: four equidistant levels, none of them zero (Max 1960)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, coins, in_part_blocks, mean_magnitude
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec

BOUNDARY = 1.25
"""The boundary between the two magnitudes, in units of the block's mean magnitude. For normally distributed entries it
is at 0.996 standard deviations, as in Max's table for four equidistant levels.
"""


@codec(
    paper='Max 1960, Quantizing for Minimum Distortion, table II',
    examples={
        'int2()': (laws.contracts(0.8), laws.idempotent(), laws.takes(lambda n: block_bytes(n, 64, 2))),
        'int2(block=512)': (laws.contracts(0.8), laws.takes(lambda n: block_bytes(n, 512, 2))),
    },
)
def int2(block: int = 64) -> Codec:
    """Codes -3, -1, 1 and 3 times a scale per block, the least-squares fit to these codes.

    For normally distributed entries the compression error is an eighth of the squared norm, against a third for `sign`
    and more than half for three levels scaled by the largest magnitude. With the fitted scale the codec is contractive,
    as error feedback needs. A zero becomes 1 or -1 at random, so that an entry without a gradient does not drift; a
    tensor that is zero on all workers stays zero (workers vote, 4 bytes a tensor in an all-reduce).

    Args:
        block: entries that share a scale; a multiple of 4.

    Raises:
        InputError: the block does not fill whole bytes.

    >>> import numpy as np
    >>> c = int2(block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([1, -3, 3, -1]))
    Array([ 1., -3.,  3., -1.], dtype=float32)
    """

    def to_codes(blocks: jax.Array, real: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        magnitude = jnp.abs(blocks)
        level = jnp.where(magnitude >= BOUNDARY * mean_magnitude(blocks, real), 3, 1)
        # The least-squares scale of these levels.
        squares = jnp.maximum(jnp.sum(jnp.where(real, level**2, 0), axis=1, keepdims=True), 1)
        scale = jnp.sum(level * magnitude / squares, axis=1, keepdims=True)
        positive = jnp.where(blocks == 0, coins(key, blocks.shape), blocks > 0)
        codes = jnp.where(positive, level, -level)
        return ((codes + 3) // 2).astype(jnp.uint8), jnp.where(jnp.isfinite(scale), scale, jnp.nan)

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (2 * codes.astype(jnp.float32) - 3) * scale

    return in_part_blocks('int2', block, 2, to_codes, from_codes)._replace(has_zero=False)
