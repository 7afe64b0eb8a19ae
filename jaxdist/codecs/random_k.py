"""Entries at random positions, from a seed that all share: no indices, and messages add up (Stich et al. 2018)."""

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
    """Keeps k entries of each block, at positions that are drawn anew each time and alike for all blocks and workers.

    Messages of all workers are of the same entries, so that an all-reduce of k / block of the vector carries them.
    Use `feedback=True`, or `unbiased=True` without it.

    Args:
        k: entries kept of each block.
        block: entries of a block.
        run: entries that are kept together; with `run=k` a random block of each.
        unbiased: whether what is kept counts block / k times: right on average, but not to be fed back.

    Raises:
        InputError: k below 1 or beyond the block, or a run that does not divide both.

    >>> c = random_k(k=2, block=4)
    >>> int((c.decode(c.encode(jnp.ones(4), jax.random.key(0)), 4) == 1).sum())
    2
    """
    if block < 1 or not 1 <= k <= block:
        raise InputError(f'random_k: k={k} must be 1 to the block, {block}')
    if run < 1 or k % run or block % run:
        raise InputError(f'random_k: run={run} must divide both k={k} and the block, {block}')

    def keep(x: jax.Array, key: jax.Array) -> jax.Array:
        blocks = x.reshape(-1, block // run, run)
        kept = blocks[:, _places(key, k // run, block // run)].reshape(-1, k)
        # What is not finite must be seen, wherever it is.
        fine = jnp.all(jnp.isfinite(x.reshape(-1, block)), axis=1, keepdims=True)
        return jnp.where(fine, kept * (block / k if unbiased else 1), jnp.nan).reshape(-1)

    def put(kept: jax.Array, key: jax.Array, n: int) -> jax.Array:
        blocks = jnp.zeros((n // block, block // run, run), jnp.float32)
        return blocks.at[:, _places(key, k // run, block // run)].set(kept.reshape(-1, k // run, run)).reshape(-1)

    def size(n: int) -> int:
        return padded(8 + n // block * k * 4, LANES)

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        seed = jax.random.bits(key, (2,), jnp.uint32)
        message = jnp.concatenate([to_bytes(seed), to_bytes(keep(x, _key(seed)))])
        return jnp.pad(message, (0, size(x.size) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        key = _key(from_bytes(message[:8], jnp.uint32))
        return put(from_bytes(message[8 : 8 + n // block * k * 4], jnp.float32), key, n)

    def summed(workers: int) -> Summed:
        return Summed(
            size=lambda n: n // block * k * 4,
            agree=lambda x: jnp.zeros((0,), jnp.float32),
            encode=lambda x, largest, shared, own: keep(x, shared),
            decode=lambda total, largest, shared, n, count: put(total, shared, n),
        )

    return Codec(block, size, encode, decode, contracts=not unbiased, summed=summed, sums_as_fine=True)


def _places(key: jax.Array, k: int, n: int) -> jax.Array:
    return jax.random.permutation(key, n)[:k]


def _key(seed: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(seed, impl='threefry2x32')
