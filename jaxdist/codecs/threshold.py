"""Entries beyond a fixed threshold, each as an index and a sign (Strom 2015, Scalable Distributed DNN Training)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs.codec import LANES, Codec, padded
from jaxdist.core.bits import from_bytes, to_bytes
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec

LARGEST_BLOCK = 2**15 - 1
"""An index and a sign share two bytes, and one index says that nothing is there."""


@codec(
    paper='Strom 2015, Scalable Distributed DNN Training Using Commodity GPU Cloud Computing, Interspeech',
    examples={
        'threshold(at=0.5, most=8, block=64)': (
            laws.levels(0.5),
            laws.contracts(0.05),
            laws.takes(lambda n: padded(n // 64 * (4 + 2 * 8), LANES)),
        ),
    },
)
def threshold(at: float, most: int, block: int = 4096) -> Codec:
    """Entries of magnitude `at` or more are sent as plus or minus `at`, in 2 bytes each; the rest is 0.

    It is made for `feedback=True`: what an entry has above `at`, and what stayed below, is sent later. XLA's shapes are
    fixed, so a message has room for `most` entries of each block, which is what it costs; of more, the largest go.

    Args:
        at: the threshold, and the magnitude that is sent.
        most: entries of a block that a message has room for.
        block: entries of a block, 32767 at most.

    Raises:
        InputError: a threshold of 0 or less, `most` below 1 or beyond the block, or a block that is too large.

    >>> c = threshold(at=1.0, most=2, block=4)
    >>> c.decode(c.encode(jnp.array([0.5, -3.0, 0.0, 1.5]), jax.random.key(0)), 4)
    Array([ 0., -1.,  0.,  1.], dtype=float32)
    """
    if at <= 0:
        raise InputError(f'threshold: at={at} must be above 0')
    if not 1 <= block <= LARGEST_BLOCK:
        raise InputError(f'threshold: block={block} must be 1 to {LARGEST_BLOCK}')
    if not 1 <= most <= block:
        raise InputError(f'threshold: most={most} must be 1 to the block, {block}')

    def size(n: int) -> int:
        return padded(n // block * (4 + 2 * most), LANES)

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        blocks = x.reshape(-1, block)
        largest, where = jax.lax.top_k(jnp.abs(blocks), most)
        where = jnp.where(largest >= at, where, LARGEST_BLOCK)
        below = jnp.take_along_axis(blocks, jnp.minimum(where, block - 1), axis=1) < 0
        fine = jnp.all(jnp.isfinite(blocks), axis=1, keepdims=True)
        value = jnp.where(fine, at, jnp.nan).astype(jnp.float32)
        slots = to_bytes((2 * where + below).astype(jnp.uint16))
        message = jnp.concatenate([slots, to_bytes(value)], axis=1).reshape(-1)
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        rows = message[: n // block * (4 + 2 * most)].reshape(-1, 4 + 2 * most)
        slots = from_bytes(rows[:, : 2 * most], jnp.uint16).astype(jnp.int32)
        values = jnp.where(slots % 2 == 1, -1, 1) * from_bytes(rows[:, 2 * most :], jnp.float32)
        # Empty slots go one beyond the block, where `mode` drops them.
        where = jnp.where(slots // 2 == LARGEST_BLOCK, block, slots // 2)
        row = jnp.arange(rows.shape[0])[:, None]
        blocks = jnp.zeros((rows.shape[0], block), jnp.float32).at[row, where].set(values, mode='drop')
        # A block that was not finite must not come back as zeros, if nothing in it was above the threshold.
        return jnp.where(jnp.isfinite(values[:, :1]), blocks, jnp.nan).reshape(-1)

    return Codec(block, size, encode, decode)
