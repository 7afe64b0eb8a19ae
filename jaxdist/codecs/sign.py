"""The sign, 1 bit per entry, times a scale per block (Karimireddy et al. 2019, arXiv 1901.09847)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, coins, in_part_blocks, mean_magnitude
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec


@codec(
    paper='Karimireddy et al. 2019, EF-signSGD, arXiv 1901.09847',
    examples={
        'sign()': (laws.contracts(0.3), laws.idempotent(), laws.takes(lambda n: block_bytes(n, 512, 1))),
        'sign(block=64)': (laws.contracts(0.4), laws.takes(lambda n: block_bytes(n, 64, 1))),
    },
)
def sign(block: int = 512) -> Codec:
    """The sign of each entry times the block's mean magnitude.

    The sign of a zero is random, so that an entry without a gradient does not drift; a tensor that is zero on all
    workers stays zero (workers vote, 4 bytes a tensor in an all-reduce).

    With error feedback this is EF-signSGD; without it, the codec is biased and SGD need not converge. Signs without a
    scale, by majority vote, are `majority`.

    Args:
        block: entries that share a scale; a multiple of 8. In the paper a layer shares one.

    Raises:
        InputError: the block does not fill whole bytes.

    >>> import numpy as np
    >>> c = sign(block=8)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 8))
    >>> roundtrip(np.float32([1, -3, 1, -3, 2, -2, 2, -2]))
    Array([ 2., -2.,  2., -2.,  2., -2.,  2., -2.], dtype=float32)
    """

    def to_codes(blocks: jax.Array, real: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        positive = jnp.where(blocks == 0, coins(key, blocks.shape), blocks > 0)
        return positive.astype(jnp.uint8), mean_magnitude(blocks, real)

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (2 * codes.astype(jnp.float32) - 1) * scale

    return in_part_blocks('sign', block, 1, to_codes, from_codes)._replace(has_zero=False)
