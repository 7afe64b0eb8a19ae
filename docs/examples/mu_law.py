"""Eight bits on a logarithmic scale: fine near zero, coarse far from it (mu-law companding, ITU-T G.711)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks, largest, safe
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec


@codec(
    paper='ITU-T Recommendation G.711, Pulse code modulation of voice frequencies',
    examples={
        'mu_law()': (laws.error_at_most(0.022), laws.contracts(0.999), laws.takes(lambda n: block_bytes(n, 256, 8))),
    },
)
def mu_law(mu: float = 255.0, block: int = 256) -> Codec:
    """Codes -127 to 127 of log(1 + mu |x| / s) / log(1 + mu), with s the block's largest magnitude."""
    if mu <= 0:
        raise ValueError(f'mu_law: mu={mu} must be above 0')

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = largest(blocks)
        height = jnp.log1p(mu * jnp.abs(blocks / safe(scale))) / jnp.log1p(mu)
        return (jnp.sign(blocks) * jnp.round(127 * height) + 127).astype(jnp.uint8), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        height = (codes.astype(jnp.float32) - 127) / 127
        return jnp.sign(height) * jnp.expm1(jnp.abs(height) * jnp.log1p(mu)) / mu * scale

    return in_blocks('mu_law', block, 8, to_codes, from_codes)
