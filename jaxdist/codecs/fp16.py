"""IEEE half precision: 2 bytes an entry, 11 bits of precision, nothing above 65504 or below 6e-8."""

import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._casts import cast
from jaxdist.codecs.codec import Codec
from jaxdist.core.registry import codec


@codec(
    paper='Micikevicius et al. 2018, arXiv 1710.03740',
    examples={
        'fp16()': (
            laws.error_at_most(2**-11),
            laws.idempotent(),
            laws.takes(lambda n: 2 * n),
        )
    },
)
def fp16() -> Codec:
    """Each entry rounded to the nearest half: larger ones become the largest, 65504; tiny ones lose precision, then
    all.

    >>> import jax
    >>> c = fp16()
    >>> c.decode(c.encode(jnp.full(64, 1e-9), jax.random.key(0)), 64)[:2]
    Array([0., 0.], dtype=float32)
    """
    return cast(jnp.float16)
