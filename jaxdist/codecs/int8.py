"""Block-wise 8-bit integers: 1 byte per entry and a float32 scale per block (Alistarh et al. 2017, section 3)."""

from typing import Literal

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes
from jaxdist.codecs._integers import integers
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec


@codec(
    paper='Alistarh et al. 2017, QSGD, arXiv 1610.02132',
    examples={
        'int8()': (
            laws.error_at_most(0.5 / 127),
            laws.contracts(0.99),
            laws.idempotent(),
            laws.takes(lambda n: block_bytes(n, 256, 8)),
        ),
        "int8(block=64, rounding='stochastic')": (
            laws.error_at_most(1 / 127),
            laws.unbiased_codec(),
            laws.takes(lambda n: block_bytes(n, 64, 8)),
        ),
    },
)
def int8(block: int = 256, rounding: Literal['nearest', 'stochastic'] = 'nearest') -> Codec:
    """Integers -127 to 127 times a scale per block, its largest magnitude over 127.

    A block with a non-finite entry decodes to NaN throughout; a block of zeros decodes to zeros.

    Args:
        block: entries that share a scale.
        rounding: `nearest`, with an error of at most half a step; or `stochastic`, unbiased, with less than one step.

    Raises:
        InputError: the block is below 1, or there is no such rounding.

    >>> import jax, numpy as np
    >>> c = int8(block=4)
    >>> message = jax.jit(c.encode)(np.float32([0, 1, -2, 127]), jax.random.key(0))
    >>> message.shape, jax.jit(c.decode, static_argnums=1)(message, 4)
    ((512,), Array([  0.,   1.,  -2., 127.], dtype=float32))
    """
    return integers('int8', 8, block, rounding)
