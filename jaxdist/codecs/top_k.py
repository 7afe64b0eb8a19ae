"""The k largest entries of each block, as indices and values (Stich et al. 2018, arXiv 1809.07599; Aji et al. 2017)."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdist import laws, wire
from jaxdist.codecs.codec import LANES, Codec, padded
from jaxdist.registry import codec

VALUES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@codec(
    paper='Stich et al. 2018, arXiv 1809.07599',
    examples={
        'top_k(k=8, block=64)': (
            laws.contracts(8 / 64),
            laws.idempotent(),
            laws.takes(lambda n: padded(n // 64 * 8 * (1 + 4), LANES)),
        ),
        'top_k(k=64, block=64)': (laws.error_at_most(0),),
        "top_k(k=41, values='bfloat16')": (
            laws.contracts(0.0099),
            laws.takes(lambda n: padded(n // 4096 * 41 * (2 + 2), LANES)),
        ),
    },
)
def top_k(k: int, block: int = 4096, values: Literal['float32', 'bfloat16'] = 'float32') -> Codec:
    """Keeps exactly k entries of each block, the largest in magnitude; of equals, the first. The rest is 0.

    Without error feedback most is lost: use `feedback=True`. An index takes 1 byte in blocks up to 256, 2 up to 65536.

    Args:
        k: entries kept of each block.
        block: entries of a block.
        values: what a kept value is sent as.

    Raises:
        ValueError: k below 1 or beyond the block, a block beyond 65536, or values that are neither dtype.

    >>> c = top_k(k=1, block=4)
    >>> c.decode(c.encode(jnp.array([1.0, -3.0, 2.0, 3.0]), jax.random.key(0)), 4)
    Array([ 0., -3.,  0.,  0.], dtype=float32)
    """
    if not 1 <= block <= 65536:
        raise ValueError(f'top_k: block={block} must be 1 to 65536')
    if not 1 <= k <= block:
        raise ValueError(f'top_k: k={k} must be 1 to the block, {block}')
    if values not in VALUES:
        raise ValueError(f"top_k: values={values!r} must be 'float32' or 'bfloat16'")
    dtype, index = VALUES[values], jnp.dtype(jnp.uint8 if block <= 256 else jnp.uint16)
    width = index.itemsize + jnp.dtype(dtype).itemsize

    def size(n: int) -> int:
        return padded(n // block * k * width, LANES)

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        blocks = x.reshape(-1, block)
        # What is not finite goes first, so that the receiver learns of it.
        rank = jnp.where(jnp.isfinite(blocks), jnp.abs(blocks), jnp.inf)
        _, where = jax.lax.top_k(rank, k)
        kept = jnp.take_along_axis(blocks, where, axis=1)
        parts = [wire.to_bytes(where.astype(index)), wire.to_bytes(kept.astype(dtype))]
        message = jnp.concatenate(parts, axis=1).reshape(-1)
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        rows = message[: n // block * k * width].reshape(-1, k * width)
        where = wire.from_bytes(rows[:, : k * index.itemsize], index).astype(jnp.int32)
        kept = wire.from_bytes(rows[:, k * index.itemsize :], dtype).astype(jnp.float32)
        blocks = jnp.zeros((rows.shape[0], block), jnp.float32)
        return jnp.put_along_axis(blocks, where, kept, axis=1, inplace=False).reshape(-1)

    return Codec(block, size, encode, decode)
