"""QSGD: stochastic rounding to levels of the block's 2-norm (Alistarh et al. 2017, arXiv 1610.02132, section 3.1)."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks, largest, rounder, safe
from jaxdist.codecs.codec import Codec
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec


@codec(
    paper='Alistarh et al. 2017, QSGD, arXiv 1610.02132',
    examples={
        'qsgd()': (
            laws.unbiased_codec(),
            laws.variance_at_most(lambda n: min(n / 7**2, n**0.5 / 7), 512),
            laws.takes(lambda n: block_bytes(n, 512, 4)),
        ),
        'qsgd(bits=2, block=64)': (laws.unbiased_codec(), laws.variance_at_most(lambda n: min(n, n**0.5), 64)),
        'qsgd(bits=8, block=64)': (laws.unbiased_codec(), laws.takes(lambda n: block_bytes(n, 64, 8))),
    },
)
def qsgd(bits: Literal[2, 4, 8] = 4, block: int = 512) -> Codec:
    """|x|_2 sign(x_i) xi_i / s, with xi_i an unbiased stochastic rounding of s |x_i| / |x|_2.

    The variance is at most min(n / s^2, sqrt(n) / s) |x|_2^2 for n entries. `feedback` is refused where that bound is 1
    or more: the codec is then not contractive. Codes have a fixed width, because shapes are static under XLA; the
    paper's Elias code is shorter where most codes are zero.

    Args:
        bits: bits per entry, sign included, for s = 2**(bits - 1) - 1 levels.
        block: entries that share a norm (the paper's bucket).

    Raises:
        InputError: `bits` is not 2, 4 or 8, or the block does not fill whole bytes.

    >>> import numpy as np
    >>> c = qsgd(bits=8, block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([0, 0, -2, 0]))
    Array([ 0.,  0., -2.,  0.], dtype=float32)
    """
    if bits not in (2, 4, 8):
        raise InputError(f'qsgd: bits={bits} must be 2, 4 or 8')
    levels = 2 ** (bits - 1) - 1
    round_off = rounder('qsgd', 'stochastic')

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        top = safe(largest(blocks))  # squares of large or small entries would leave the range of float32
        scale = top * jnp.sqrt(jnp.sum((blocks / top) ** 2, axis=1, keepdims=True)) / levels
        numbers = jnp.clip(round_off(blocks / safe(scale), key), -levels, levels)
        return (numbers + levels).astype(jnp.uint8), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (codes.astype(jnp.float32) - levels) * scale

    variance = min(block / levels**2, block**0.5 / levels)
    return in_blocks('qsgd', block, bits, to_codes, from_codes)._replace(contracts=variance < 1)
