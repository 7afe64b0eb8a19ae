"""8-bit floats with a scale per block (Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv 2209.05433)."""

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
    """A cast to 8-bit floats, after each block is scaled so that its largest magnitude is the format's largest.

    Args:
        format: `e4m3`, with 3 mantissa bits and a dynamic range of 2^18, or `e5m2`, with 2 bits and 2^32.
        block: entries that share a scale.

    Raises:
        InputError: there is no such format, or the block is below 1.

    >>> import numpy as np
    >>> c = fp8(block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([0, 1, -2, 448]))
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
