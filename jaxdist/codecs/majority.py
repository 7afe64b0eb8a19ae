"""Majority vote of signs, 1 bit per entry: signSGD, Signum (Bernstein et al. 2018, arXiv 1802.04434, 1810.05291)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, coins, in_blocks
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec


@codec(
    paper='Bernstein et al. 2018, signSGD with Majority Vote, arXiv 1810.05291',
    examples={
        'majority()': (laws.signs(), laws.idempotent(), laws.takes(lambda n: block_bytes(n, 4096, 1))),
        'majority(block=64)': (laws.signs(), laws.takes(lambda n: block_bytes(n, 64, 1))),
    },
)
def majority(block: int = 4096) -> Codec:
    """The sign of each entry, -1 or 1, and of all workers' signs the majority.

    `mean(codec=majority()) | sgd(1e-3)` is signSGD with majority vote; with `ema(0.9)` before it, it is Signum. The
    sign of a zero is random, and so is the result of a tie: entries without a gradient do not drift. A block of zeros
    stays zeros, and so does a tensor that is zero on all workers (they vote, 4 bytes a tensor in an all-reduce). The
    exchange is `two_phases`, because one worker must count all votes for an entry. The result has no magnitudes, so
    `feedback` is refused (see `sign`).

    Args:
        block: entries that share a 4-byte flag for a block of zeros or with a non-finite entry; a multiple of 8.

    Raises:
        InputError: the block does not fill whole bytes.

    >>> import numpy as np
    >>> c = majority(block=8)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 8))
    >>> roundtrip(np.float32([1, -3, 1, -3, 2, -2, 2, -2]))
    Array([ 1., -1.,  1., -1.,  1., -1.,  1., -1.], dtype=float32)
    """

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        # With a fixed sign for zeros, parameters without a gradient would drift.
        positive = jnp.where(blocks == 0, coins(key, blocks.shape), blocks > 0)
        scale = jnp.any(blocks != 0, axis=1, keepdims=True).astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(blocks), axis=1, keepdims=True)
        return positive.astype(jnp.uint8), jnp.where(finite, scale, jnp.nan)

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (2 * codes.astype(jnp.float32) - 1) * scale

    return in_blocks('majority', block, 1, to_codes, from_codes)._replace(contracts=False, votes=True, has_zero=False)
