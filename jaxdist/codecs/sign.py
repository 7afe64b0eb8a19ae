"""One bit an entry: the sign, times a scale for each block (Karimireddy et al. 2019, arXiv 1901.09847)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks
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
    """Each entry's sign, times the block's mean magnitude; zero counts as positive.

    Without error feedback this is a biased codec that need not converge; with it, it is EF-signSGD. Signs alone, by
    vote, are `majority`.

    Args:
        block: entries that share a scale; a multiple of 8. The paper takes a layer at a time.

    Raises:
        InputError: a block that does not fill whole bytes.

    >>> c = sign(block=8)
    >>> c.decode(c.encode(jnp.array([1.0, -3.0, 1.0, -3.0, 2.0, -2.0, 2.0, -2.0]), jax.random.key(0)), 8)
    Array([ 2., -2.,  2., -2.,  2., -2.,  2., -2.], dtype=float32)
    """

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (blocks >= 0).astype(jnp.uint8), jnp.mean(jnp.abs(blocks), axis=1, keepdims=True)

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return (2 * codes.astype(jnp.float32) - 1) * scale

    return in_blocks('sign', block, 1, to_codes, from_codes)
