"""Plain casts to shorter floats: what `bf16`, `fp16` have in common. Rounded to nearest, sent as bytes."""

import jax
import jax.numpy as jnp

from jaxdist import wire
from jaxdist.codecs.codec import LANES, Codec, padded


def cast(dtype: jax.typing.DTypeLike) -> Codec:
    """A codec that casts. Finite numbers beyond the dtype's largest become the largest, so that none is made infinite.

    >>> c = cast(jnp.float16)
    >>> c.decode(c.encode(jnp.array([1.0, 1e9]), jax.random.key(0)), 2)
    Array([1.0000e+00, 6.5504e+04], dtype=float32)
    """
    width, top = jnp.dtype(dtype).itemsize, float(jnp.finfo(dtype).max)

    def size(n: int) -> int:
        return padded(n * width, LANES)

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        inside = jnp.where(jnp.isfinite(x), jnp.clip(x, -top, top), x)
        message = wire.to_bytes(inside.astype(dtype))
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        return wire.from_bytes(message[: n * width], dtype).astype(jnp.float32)

    return Codec(1, size, encode, decode)
