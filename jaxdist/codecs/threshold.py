"""Sparsification by a fixed threshold, an index and a sign per kept entry (Strom 2015)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs.codec import LANES, Codec, padded
from jaxdist.core.bits import from_bytes, to_bytes
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec

LARGEST_BLOCK = 2**15 - 1
"""An index and a sign share two bytes, and one index marks an empty slot."""


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
    """Entries of magnitude `at` or more become plus or minus `at`, in 2 bytes each; all others become 0.

    Use it with `feedback=True`: the residual sends later what an entry has above `at`, and entries below it. Shapes are
    static under XLA, so a message has `most` slots per block whether used or not; if more entries reach the threshold,
    the largest are sent.

    Args:
        at: the threshold, and the magnitude of the decoded entries.
        most: slots for kept entries per block.
        block: entries per block, 32767 at most.

    Raises:
        InputError: the threshold is 0 or less, `most` is below 1 or above the block, or the block is too large.

    >>> import numpy as np
    >>> c = threshold(at=1.0, most=2, block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> roundtrip(np.float32([0.5, -3, 0, 1.5]))
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
        largest, indices = jax.lax.top_k(jnp.abs(blocks), most)
        indices = jnp.where(largest >= at, indices, LARGEST_BLOCK)
        negative = jnp.take_along_axis(blocks, jnp.minimum(indices, block - 1), axis=1) < 0
        finite = jnp.all(jnp.isfinite(blocks), axis=1, keepdims=True)
        value = jnp.where(finite, at, jnp.nan).astype(jnp.float32)
        slots = to_bytes((2 * indices + negative).astype(jnp.uint16))
        message = jnp.concatenate([slots, to_bytes(value)], axis=1).reshape(-1)
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        rows = message[: n // block * (4 + 2 * most)].reshape(-1, 4 + 2 * most)
        slots = from_bytes(rows[:, : 2 * most], jnp.uint16).astype(jnp.int32)
        values = jnp.where(slots % 2 == 1, -1, 1) * from_bytes(rows[:, 2 * most :], jnp.float32)
        # The index of an empty slot is out of bounds, so `mode` drops it.
        indices = jnp.where(slots // 2 == LARGEST_BLOCK, block, slots // 2)
        row = jnp.arange(rows.shape[0])[:, None]
        blocks = jnp.zeros((rows.shape[0], block), jnp.float32).at[row, indices].set(values, mode='drop')
        # A block with a NaN and no entry above the threshold must not decode to zeros.
        return jnp.where(jnp.isfinite(values[:, :1]), blocks, jnp.nan).reshape(-1)

    return Codec(block, size, encode, decode)
