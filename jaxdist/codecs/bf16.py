"""bfloat16: 2 bytes per entry, with float32's range and 8 bits of precision."""

import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._casts import cast_codec
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
    """A cast to the nearest bfloat16, with a relative error of at most 2**-8.

    >>> import jax, numpy as np
    >>> c = bf16()
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 64))
    >>> np.asarray(roundtrip(np.full(64, 1.001, np.float32)))[:2]
    array([1., 1.], dtype=float32)
    """
    return cast_codec(jnp.bfloat16)
