"""Top-k sparsification, by blocks, as indices and values (Stich et al. 2018, arXiv 1809.07599; Aji et al. 2017)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs.bf16 import bf16
from jaxdist.codecs.codec import LANES, Codec, padded
from jaxdist.core.bits import from_bytes, to_bytes
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec


@codec(
    paper='Stich et al. 2018, arXiv 1809.07599',
    examples={
        'top_k(k=8, block=64)': (
            laws.contracts(8 / 64),
            laws.keeps(8, 64),
            laws.idempotent(),
            laws.takes(lambda n: padded(n // 64 * 8 * (1 + 4), LANES)),
        ),
        'top_k(k=64, block=64)': (laws.error_at_most(0),),
        'top_k(k=41, values=bf16())': (
            laws.contracts(0.0099),
            laws.takes(lambda n: padded(n // 4096 * 41 * 2 + bf16().size(padded(n // 4096 * 41, bf16().block)), LANES)),
        ),
        'top_k(k=64, block=1024, values=int2())': (
            laws.contracts(0.05),
            laws.takes(lambda n: padded(n // 1024 * 64 * 2 + padded(n // 1024 * 20, LANES), LANES)),
        ),
    },
)
def top_k(k: int, block: int = 4096, values: Codec | None = None) -> Codec:
    """Keeps the k entries of each block that are largest in magnitude (the first of equals); all others become 0.

    Use it with `feedback=True`: without error feedback most of the vector is lost. An index takes 1 byte for blocks up
    to 256 entries, 2 up to 65536, and 3 beyond.

    Args:
        k: entries kept of each block.
        block: entries per block.
        values: the codec of the kept values, which are ordered by block, then by magnitude; None for float32.

    Raises:
        InputError: k is below 1 or above the block, the block is above 2**24, or `values` is not a codec of vectors.

    >>> import numpy as np
    >>> c = top_k(k=1, block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([1, -3, 2, 3]))
    Array([ 0., -3.,  0.,  0.], dtype=float32)
    """
    if not 1 <= block <= 2**24:
        raise InputError(f'top_k: block={block} must be 1 to 2**24')
    if not 1 <= k <= block:
        raise InputError(f'top_k: k={k} must be 1 to the block, {block}')
    if values is not None and not isinstance(values, Codec):
        raise InputError('top_k: values must be a codec of vectors, such as bf16(), or None for float32')
    width = max(1, -(-(block - 1).bit_length() // 8))

    def value_bytes(n: int) -> int:
        return 4 * n if values is None else values.size(padded(n, values.block))

    def size(n: int) -> int:
        return padded(n // block * k * width + value_bytes(n // block * k), LANES)

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        blocks = x.reshape(-1, block)
        # Non-finite entries rank first, so that the receiver's guard sees them.
        rank = jnp.where(jnp.isfinite(blocks), jnp.abs(blocks), jnp.inf)
        _, indices = jax.lax.top_k(rank, k)
        kept = jnp.take_along_axis(blocks, indices, axis=1).reshape(-1)
        index_bytes = to_bytes(indices.reshape(-1, 1).astype(jnp.uint32))[:, :width].reshape(-1)
        message = jnp.concatenate([index_bytes, _encode_values(kept, values, key)])
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        count = n // block * k
        index_bytes = jnp.pad(message[: count * width].reshape(-1, width), ((0, 0), (0, 4 - width)))
        indices = from_bytes(index_bytes, jnp.uint32).reshape(-1, k).astype(jnp.int32)
        rest = message[count * width : count * width + value_bytes(count)]
        kept = _decode_values(rest, count, values).reshape(-1, k)
        blocks = jnp.zeros((n // block, block), jnp.float32)
        return jnp.put_along_axis(blocks, indices, kept, axis=1, inplace=False).reshape(-1)

    return Codec(block, size, encode, decode, contracts=values is None or values.contracts)


def _encode_values(kept: jax.Array, values: Codec | None, key: jax.Array) -> jax.Array:
    if values is None:
        return to_bytes(kept)
    return values.encode(jnp.pad(kept, (0, padded(kept.size, values.block) - kept.size)), key)


def _decode_values(message: jax.Array, n: int, values: Codec | None) -> jax.Array:
    if values is None:
        return from_bytes(message, jnp.float32)
    return values.decode(message, padded(n, values.block))[:n]
