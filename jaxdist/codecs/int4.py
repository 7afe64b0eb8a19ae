"""Block-wise 4-bit integers, two to a byte: half a byte an entry and a float32 scale a block (as in 2306.10209)."""

from typing import Literal

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes
from jaxdist.codecs._integers import integers
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec


@codec(
    paper='Wang et al. 2023, ZeRO++ (qgZ), arXiv 2306.10209',
    examples={
        'int4()': (
            laws.error_at_most(0.5 / 7),
            laws.idempotent(),
            laws.takes(lambda n: block_bytes(n, 256, 4)),
        ),
        "int4(block=32, rounding='stochastic')": (laws.error_at_most(1 / 7), laws.unbiased_codec()),
    },
)
def int4(block: int = 256, rounding: Literal['nearest', 'stochastic'] = 'nearest') -> Codec:
    """Integers -7 to 7 times a scale, the block's largest magnitude over 7.

    Args:
        block: entries that share a scale; even.
        rounding: `nearest`, or `stochastic` and right on average.

    Raises:
        InputError: a block that does not fill whole bytes, or a rounding that does not exist.

    >>> import jax, jax.numpy as jnp
    >>> c = int4(block=4)
    >>> c.decode(c.encode(jnp.array([0.0, 1.0, -2.0, 7.0]), jax.random.key(0)), 4)
    Array([ 0.,  1., -2.,  7.], dtype=float32)
    """
    return integers('int4', 4, block, rounding)
