"""Block-wise 8-bit integers: 1 byte an entry and a float32 scale a block (Alistarh et al. 2017, arXiv 1610.02132,
section 3).
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdist import laws, wire
from jaxdist.codecs.codec import LANES, Codec, padded
from jaxdist.registry import codec

LEVELS = 127


@codec(
    paper='Alistarh et al. 2017, QSGD, arXiv 1610.02132',
    examples={
        'int8()': (
            laws.error_at_most(0.5 / LEVELS),
            laws.contracts(0.99),
            laws.idempotent(),
            laws.takes(lambda n: padded(n // 256 * 260, LANES)),
        ),
        "int8(block=64, rounding='stochastic')": (
            laws.error_at_most(1 / LEVELS),
            laws.unbiased_codec(),
            laws.takes(lambda n: padded(n // 64 * 68, LANES)),
        ),
    },
)
def int8(block: int = 256, rounding: Literal['nearest', 'stochastic'] = 'nearest') -> Codec:
    """Integers -127 to 127 times a scale, the block's largest magnitude over 127.

    A block that holds a number that is not finite decodes to NaN throughout; a block of zeros to zeros.

    Args:
        block: entries that share a scale.
        rounding: `nearest`, off by half a step at most; or `stochastic`, off by less than a step and right on average.

    Raises:
        ValueError: a block smaller than 1, or a rounding that does not exist.

    >>> c = int8(block=4)
    >>> message = c.encode(jnp.array([0.0, 1.0, -2.0, 127.0]), jax.random.key(0))
    >>> message.shape, c.decode(message, 4)
    ((128,), Array([  0.,   1.,  -2., 127.], dtype=float32))
    """
    if block < 1:
        raise ValueError(f'int8: block={block} must be 1 or more')
    if rounding not in ('nearest', 'stochastic'):
        raise ValueError(f"int8: rounding={rounding!r} must be 'nearest' or 'stochastic'")

    def size(n: int) -> int:
        return padded(n // block * (block + 4), LANES)

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        blocks = x.reshape(-1, block)
        scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True) / LEVELS
        steps = blocks / jnp.where(scale == 0, 1, scale)
        up = jax.random.uniform(key, blocks.shape) if rounding == 'stochastic' else 0.5
        codes = jnp.clip(jnp.floor(steps + up), -LEVELS, LEVELS).astype(jnp.int8)
        message = jnp.concatenate([wire.to_bytes(codes), wire.to_bytes(scale)], axis=1).reshape(-1)
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        rows = message[: n // block * (block + 4)].reshape(-1, block + 4)
        codes, scale = wire.from_bytes(rows[:, :block], jnp.int8), wire.from_bytes(rows[:, block:], jnp.float32)
        return (codes * scale).reshape(-1)

    return Codec(block, size, encode, decode)
