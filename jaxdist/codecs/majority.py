"""One bit an entry, by vote: signSGD and Signum (Bernstein et al. 2018, arXiv 1802.04434 and 1810.05291)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks
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
    """Each entry's sign, -1 or 1, and of all workers' signs that of the most.

    `mean(codec=majority()) | sgd(1e-3)` is signSGD with majority vote, and with `ema(0.9)` before it Signum. A zero
    votes at random, and a tie falls at random, so that what nobody has a gradient for does not drift; a block of zeros
    stays zeros. A vote has to be counted in one place, so the exchange is `two_phases`; its outcome says nothing of
    sizes, so there is no `feedback` (see `sign`).

    Args:
        block: entries that share four bytes which tell of zeros and of what is not finite; a multiple of 8.

    Raises:
        InputError: a block that does not fill whole bytes.

    >>> c = majority(block=8)
    >>> c.decode(c.encode(jnp.array([1.0, -3.0, 1.0, -3.0, 2.0, -2.0, 2.0, -2.0]), jax.random.key(0)), 8)
    Array([ 1., -1.,  1., -1.,  1., -1.,  1., -1.], dtype=float32)
    """

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        coin = jax.random.bernoulli(key, 0.5, blocks.shape)
        up = jnp.where(blocks == 0, coin, blocks > 0)
        scale = jnp.any(blocks != 0, axis=1, keepdims=True).astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(blocks), axis=1, keepdims=True)
        return up.astype(jnp.uint8), jnp.where(finite, scale, jnp.nan)

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (2 * codes.astype(jnp.float32) - 1) * scale

    return in_blocks('majority', block, 1, to_codes, from_codes)._replace(contracts=False, votes=True)
