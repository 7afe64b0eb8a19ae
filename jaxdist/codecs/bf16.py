"""bfloat16: 2 bytes an entry, float32's range and 8 bits of precision."""

import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._casts import cast
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec


@codec(
    paper='Kalamkar et al. 2019, arXiv 1905.12322',
    examples={
        'bf16()': (
            laws.error_at_most(2**-8),
            laws.idempotent(),
            laws.takes(lambda n: 2 * n),
        )
    },
)
def bf16() -> Codec:
    """Each entry rounded to the nearest bfloat16: off by 1 part in 256 at most.

    >>> import jax
    >>> c = bf16()
    >>> c.decode(c.encode(jnp.full(64, 1.001), jax.random.key(0)), 64)[:2]
    Array([1., 1.], dtype=float32)
    """
    return cast(jnp.bfloat16)
