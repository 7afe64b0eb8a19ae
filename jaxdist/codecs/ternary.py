"""TernGrad: codes -1, 0 and 1 times a scale per block, in 2 bits per entry (Wen et al. 2017, arXiv 1705.07878)."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_part_blocks, largest, rounder, safe
from jaxdist.codecs.codec import Codec
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec


@codec(
    paper='Wen et al. 2017, TernGrad, arXiv 1705.07878',
    examples={
        'ternary()': (laws.unbiased_codec(), laws.error_at_most(1), laws.takes(lambda n: block_bytes(n, 512, 2))),
        "ternary(rounding='nearest', block=64)": (laws.error_at_most(0.5), laws.idempotent()),
        'ternary(clip=2.5)': (laws.takes(lambda n: block_bytes(n, 512, 2)),),
    },
)
def ternary(
    block: int = 512, rounding: Literal['nearest', 'stochastic'] = 'stochastic', clip: float | None = None
) -> Codec:
    """The sign of each entry with probability |x| / s, else 0, times s, the block's largest magnitude.

    The paper uses one scale per layer; a scale per block never has a larger error. With stochastic rounding the
    compression error can be larger than the vector, so `feedback` is refused.

    Args:
        block: entries that share a scale; a multiple of 4.
        rounding: `stochastic` as in the paper, which is unbiased; or `nearest`.
        clip: the number of standard deviations of the block at which entries are clipped first (the paper's 2.5), for
            less variance and some bias; None for no clipping. Deviations are from zero, a gradient's expected value, so
            that a block of equal entries is not clipped to nothing.

    Raises:
        InputError: the block does not fill whole bytes, `clip` is 0 or less, or there is no such rounding.

    >>> import numpy as np
    >>> c = ternary(block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([0, 3, -3, 0]))
    Array([ 0.,  3., -3.,  0.], dtype=float32)
    """
    if clip is not None and clip <= 0:
        raise InputError(f'ternary: clip={clip} must be above 0 standard deviations')
    round_off = rounder('ternary', rounding)

    def to_codes(blocks: jax.Array, real: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        if clip is not None:
            bound = clip * _deviation(blocks, real)
            blocks = jnp.where(jnp.isfinite(bound), jnp.clip(blocks, -bound, bound), blocks)
        scale = largest(blocks)
        return (jnp.clip(round_off(blocks / safe(scale), key), -1, 1) + 1).astype(jnp.uint8), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (codes.astype(jnp.float32) - 1) * scale

    # Stochastic rounding moves a small entry by up to the scale, so the error can exceed the norm: not contractive.
    return in_part_blocks('ternary', block, 2, to_codes, from_codes)._replace(contracts=rounding == 'nearest')


def _deviation(blocks: jax.Array, real: jax.Array) -> jax.Array:
    """The root of the mean square of each block's real entries, [b, 1]."""
    top = safe(largest(blocks))  # squares of large or small entries would leave the range of float32
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return top * jnp.sqrt(jnp.sum((blocks / top) ** 2, axis=1, keepdims=True) / count)
