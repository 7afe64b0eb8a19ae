"""Random-k sparsification, at positions from a shared seed: no indices, and summable messages (Stich et al. 2018)."""

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs.codec import LANES, Codec, Summed, padded
from jaxdist.core.bits import from_bytes, to_bytes
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec


@codec(
    paper='Stich et al. 2018, arXiv 1809.07599; random blocks: Vogels et al. 2019, arXiv 1905.13727, section 4.2',
    examples={
        'random_k(k=32, block=64)': (
            laws.variance_at_most(lambda n: 1 - 32 / n, 64),
            laws.keeps(32, 64),
            laws.takes(lambda n: padded(8 + n // 64 * 32 * 4, LANES)),
        ),
        'random_k(k=16, block=64, unbiased=True)': (laws.unbiased_codec(), laws.keeps(16, 64)),
        'random_k(k=16, block=64, run=8)': (laws.keeps(16, 64, run=8),),
        'random_k(k=64, block=64)': (laws.error_at_most(0),),
    },
)
def random_k(k: int, block: int = 4096, run: int = 1, unbiased: bool = False) -> Codec:
    """Keeps k entries of each block, at random positions that are redrawn each time, the same in all blocks.

    By the exchange `all_reduce` the positions are also the same on all workers, and an all-reduce of k / block of the
    vector carries the messages. Use `feedback=True`, or `unbiased=True` without feedback.

    Args:
        k: entries kept of each block.
        block: entries per block.
        run: consecutive entries that are kept together; with `run=k` one random run of each block is kept.
        unbiased: whether kept entries are multiplied by block / k: unbiased, but not contractive, so `feedback` is
            refused.

    Raises:
        InputError: k is below 1 or above the block, or the run does not divide both.

    >>> import numpy as np
    >>> c = random_k(k=2, block=4)
    >>> roundtrip = jax.jit(lambda x: c.decode(c.encode(x, jax.random.key(0)), 4))
    >>> int((np.asarray(roundtrip(np.ones(4, np.float32))) == 1).sum())
    2
    """
    if block < 1 or not 1 <= k <= block:
        raise InputError(f'random_k: k={k} must be 1 to the block, {block}')
    if run < 1 or k % run or block % run:
        raise InputError(f'random_k: run={run} must divide both k={k} and the block, {block}')

    def keep(x: jax.Array, key: jax.Array) -> jax.Array:
        blocks = x.reshape(-1, block // run, run)
        kept = blocks[:, _positions(key, k // run, block // run)].reshape(-1, k)
        # A non-finite entry must reach the receiver's guard, even if it is not among those kept.
        finite = jnp.all(jnp.isfinite(x.reshape(-1, block)), axis=1, keepdims=True)
        return jnp.where(finite, kept * (block / k if unbiased else 1), jnp.nan).reshape(-1)

    def scatter(kept: jax.Array, key: jax.Array, n: int) -> jax.Array:
        blocks = jnp.zeros((n // block, block // run, run), jnp.float32)
        return blocks.at[:, _positions(key, k // run, block // run)].set(kept.reshape(-1, k // run, run)).reshape(-1)

    def size(n: int) -> int:
        return padded(8 + n // block * k * 4, LANES)

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        # The message contains its seed, since each worker draws another where messages are not summed.
        seed = jax.random.bits(key, (2,), jnp.uint32)
        message = jnp.concatenate([to_bytes(seed), to_bytes(keep(x, _key(seed)))])
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        key = _key(from_bytes(message[:8], jnp.uint32))
        return scatter(from_bytes(message[8 : 8 + n // block * k * 4], jnp.float32), key, n)

    def summed(workers: int) -> Summed:
        return Summed(
            size=lambda n: n // block * k * 4,
            agree=lambda x: jnp.zeros((0,), jnp.float32),
            encode=lambda x, largest, shared, own: keep(x, shared),
            decode=lambda total, largest, shared, n, count: scatter(total, shared, n),
        )

    return Codec(block, size, encode, decode, contracts=not unbiased, summed=summed, sums_as_fine=True)


def _positions(key: jax.Array, k: int, n: int) -> jax.Array:
    """Positions of k of n entries, drawn without repetition."""
    return jax.random.permutation(key, n)[:k]


def _key(seed: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(seed, impl='threefry2x32')
