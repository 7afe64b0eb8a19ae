"""IEEE half precision: 2 bytes per entry, with 11 bits of precision, from 6e-8 to 65504."""

import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs._casts import cast_codec
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
    """A cast to the nearest half-precision float; larger magnitudes are clipped to 65504.

    Magnitudes below 6.1e-5 are subnormal and lose precision; those below 3e-8 become 0.

    >>> import jax, numpy as np
    >>> c = fp16()
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 64))
    >>> np.asarray(roundtrip(np.full(64, 1e-9, np.float32)))[:2]
    array([0., 0.], dtype=float32)
    """
    return cast_codec(jnp.float16)
