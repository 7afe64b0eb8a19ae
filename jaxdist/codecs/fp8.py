"""8-bit floats with a scale for each block (Micikevicius et al. 2022, FP8 Formats for Deep Learning, 2209.05433)."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._blocks import block_bytes, in_blocks, largest, safe
from jaxdist.codecs.codec import Codec
from jaxdist.core.bits import from_bytes, to_bytes
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec

FORMATS = {'e4m3': jnp.float8_e4m3fn, 'e5m2': jnp.float8_e5m2}


@codec(
    paper='Micikevicius et al. 2022, arXiv 2209.05433',
    examples={
        'fp8()': (laws.error_at_most(2**-4), laws.contracts(0.99), laws.takes(lambda n: block_bytes(n, 256, 8))),
        "fp8(format='e5m2', block=64)": (laws.error_at_most(2**-3), laws.takes(lambda n: block_bytes(n, 64, 8))),
    },
)
def fp8(format: Literal['e4m3', 'e5m2'] = 'e4m3', block: int = 256) -> Codec:
    """Each entry as an 8-bit float, after the block's largest magnitude was scaled to the format's largest.

    Args:
        format: `e4m3` (3 bits of precision, range 2^18) or `e5m2` (2 bits, range 2^32).
        block: entries that share a scale.

    Raises:
        InputError: a format that does not exist, or a block smaller than 1.

    >>> c = fp8(block=4)
    >>> c.decode(c.encode(jnp.array([0.0, 1.0, -2.0, 448.0]), jax.random.key(0)), 4)
    Array([  0.,   1.,  -2., 448.], dtype=float32)
    """
    if format not in FORMATS:
        raise InputError(f"fp8: format={format!r} must be 'e4m3' or 'e5m2'")
    dtype = FORMATS[format]
    top = float(jnp.finfo(dtype).max)

    def to_codes(blocks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = largest(blocks) / top
        return to_bytes(jnp.clip(blocks / safe(scale), -top, top).astype(dtype)), scale

    def from_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
        return from_bytes(codes, dtype).astype(jnp.float32) * scale

    return in_blocks('fp8', block, 8, to_codes, from_codes)
