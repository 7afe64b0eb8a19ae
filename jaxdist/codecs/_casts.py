"""Casts to shorter floats, shared by `bf16` and `fp16`: rounding to nearest, sent as bytes without scales."""

import jax
import jax.numpy as jnp

from jaxdist.codecs.codec import LANES, Codec
from jaxdist.core.bits import from_bytes, to_bytes


def cast_codec(dtype: jax.typing.DTypeLike) -> Codec:
    """A codec that casts to `dtype`. Finite entries beyond its range are clipped, so that none becomes infinite.

    >>> import numpy as np
    >>> c = cast_codec(jnp.float16)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 256))
    >>> c.block, np.asarray(roundtrip(np.full(256, 1e9, np.float32)))[:2]
    (256, array([65504., 65504.], dtype=float32))
    """
    width, top = jnp.dtype(dtype).itemsize, float(jnp.finfo(dtype).max)

    def size(n: int) -> int:
        return n * width

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        # A NaN or an infinity must reach the receiver, so that its guard rejects the step.
        clipped = jnp.where(jnp.isfinite(x), jnp.clip(x, -top, top), x)
        return to_bytes(clipped.astype(dtype))

    def decode(message: jax.Array, n: int) -> jax.Array:
        return from_bytes(message, dtype).astype(jnp.float32)

    return Codec(LANES // width, size, encode, decode)
