"""Block-wise 4-bit integers: half a byte per entry and a float32 scale per block (as in arXiv 2306.10209)."""

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
    """Integers -7 to 7 times a scale per block, its largest magnitude over 7.

    Args:
        block: entries that share a scale; even.
        rounding: `nearest`, or `stochastic`, which is unbiased.

    Raises:
        InputError: the block does not fill whole bytes, or there is no such rounding.

    >>> import jax, numpy as np
    >>> c = int4(block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([0, 1, -2, 7]))
    Array([ 0.,  1., -2.,  7.], dtype=float32)
    """
    return integers('int4', 4, block, rounding)
