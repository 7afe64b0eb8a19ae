"""Natural compression: stochastic rounding of each entry to a power of two (Horvath et al. 2019, arXiv 1905.10988)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks, largest
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec

OCTAVES = 127
"""Powers of two that a block can use, from its largest downwards; smaller entries are rounded stochastically to the
least of them or to 0.
"""


@codec(
    paper='Horvath et al. 2019, arXiv 1905.10988',
    examples={
        'natural(block=128)': (
            laws.unbiased_codec(),
            laws.variance_at_most(lambda n: 1 / 8, 128),
            laws.idempotent(),
            laws.takes(lambda n: block_bytes(n, 128, 8)),
        )
    },
)
def natural(block: int = 4096) -> Codec:
    """Unbiased rounding of each entry to one of the two neighbouring powers of two: 1 byte per entry.

    The variance is at most an eighth of the squared norm. The paper sends float32's sign and exponent, 9 bits; this
    codec sends a sign and 7 bits of exponent relative to the block's largest.

    Args:
        block: entries whose exponents are relative to one largest exponent.

    Raises:
        InputError: the block is below 1.

    >>> import numpy as np
    >>> c = natural(block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([0, 1, -2, 0.25]))
    Array([ 0.  ,  1.  , -2.  ,  0.25], dtype=float32)
    """

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = _power_above(largest(blocks))
        mantissa, exponent = jnp.frexp(jnp.abs(blocks) / jnp.where(scale == 0, 1, scale))  # below 1: exponent <= 1
        # |x| = mantissa * 2^exponent, mantissa in [1/2, 1): rounded up to 2^exponent with probability 2 mantissa - 1.
        draw = jax.random.uniform(key, blocks.shape)
        up = jnp.where(draw < 2 * mantissa - 1, exponent, exponent - 1)
        # Below the least power, to that power or to 0. Of a subnormal number `frexp` may return (0, 0).
        least = 1 - OCTAVES
        low = jnp.where(draw < jnp.ldexp(mantissa, exponent - least), 1, 0)
        steps = jnp.where((exponent <= least) | (mantissa == 0), low, up - least + 1)
        steps = jnp.where(blocks == 0, 0, steps).astype(jnp.uint8)
        return steps + jnp.where(blocks < 0, 128, 0).astype(jnp.uint8), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        steps = (codes & 127).astype(jnp.int32)
        magnitude = jnp.where(steps == 0, 0, jnp.ldexp(jnp.float32(1), steps - OCTAVES))
        return jnp.where(codes >= 128, -1, 1) * magnitude * scale

    return in_blocks('natural', block, 8, to_codes, from_codes)


def _power_above(x: jax.Array) -> jax.Array:
    """The least power of two that is `x` or more, exactly; `x` itself where it is 0 or not finite."""
    mantissa, exponent = jnp.frexp(x)
    power = jnp.ldexp(jnp.where(mantissa == 0.5, 0.5, 1.0), exponent)
    return jnp.where(jnp.isfinite(x) & (x > 0), power, x)
