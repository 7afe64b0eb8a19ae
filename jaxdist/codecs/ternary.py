"""Three values, -1, 0 and 1 times a scale, in 2 bits an entry (Wen et al. 2017, TernGrad, arXiv 1705.07878)."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks, largest, rounder, safe
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
    """The sign of each entry, kept with probability |x| / s, times s, the block's largest magnitude.

    The paper scales a layer at a time; here it is a block, which never has a larger error. Rounded at random, the error
    can be larger than the vector, and `feedback` is refused.

    Args:
        block: entries that share a scale; a multiple of 4.
        rounding: `stochastic` as published, right on average; or `nearest`.
        clip: entries beyond this many standard deviations of their block are clipped first (the paper's 2.5): less
            variance, and no longer right on average.

    Raises:
        InputError: a block that does not fill whole bytes, a clip of 0 or less, or a rounding that does not exist.

    >>> c = ternary(block=4)
    >>> c.decode(c.encode(jnp.array([0.0, 3.0, -3.0, 0.0]), jax.random.key(0)), 4)
    Array([ 0.,  3., -3.,  0.], dtype=float32)
    """
    if clip is not None and clip <= 0:
        raise InputError(f'ternary: clip={clip} must be above 0 standard deviations')
    round_off = rounder('ternary', rounding)

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        if clip is not None:
            bound = clip * jnp.std(blocks, axis=1, keepdims=True)
            blocks = jnp.where(jnp.isfinite(bound), jnp.clip(blocks, -bound, bound), blocks)
        scale = largest(blocks)
        return (jnp.clip(round_off(blocks / safe(scale), key), -1, 1) + 1).astype(jnp.uint8), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (codes.astype(jnp.float32) - 1) * scale

    # A small entry that is kept is off by almost the scale: at random, more may be made up than there was.
    return in_blocks('ternary', block, 2, to_codes, from_codes)._replace(contracts=rounding == 'nearest')
