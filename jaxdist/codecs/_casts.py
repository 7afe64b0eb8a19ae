"""Plain casts to shorter floats: what `bf16`, `fp16` have in common. Rounded to nearest, sent as bytes."""

import jax
import jax.numpy as jnp

from jaxdist.codecs.codec import LANES, Codec
from jaxdist.core.bits import from_bytes, to_bytes


def cast(dtype: jax.typing.DTypeLike) -> Codec:
    """A codec that casts. Finite numbers beyond the dtype's largest become the largest, so that none is made infinite.

    >>> c = cast(jnp.float16)
    >>> c.block, c.decode(c.encode(jnp.full(256, 1e9), jax.random.key(0)), 256)[:2]
    (256, Array([65504., 65504.], dtype=float32))
    """
    width, top = jnp.dtype(dtype).itemsize, float(jnp.finfo(dtype).max)

    def size(n: int) -> int:
        return n * width

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        inside = jnp.where(jnp.isfinite(x), jnp.clip(x, -top, top), x)
        return to_bytes(inside.astype(dtype))

    def decode(message: jax.Array, n: int) -> jax.Array:
        return from_bytes(message, dtype).astype(jnp.float32)

    return Codec(LANES // width, size, encode, decode)
