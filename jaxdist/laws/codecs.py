"""Laws of codecs: every codec's, and those that one may claim."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.laws.law import Law, LawBroken, close, same_bits
from jaxdist.laws.noise import centred


@dataclass(frozen=True)
class CodecTrial:
    """A codec on trial.

    Attributes:
        codec: a `jaxdist.codecs.Codec`.
        blocks: the length of the vector, in the codec's blocks.
        seed: of the vector.
    """

    codec: Any
    blocks: int = 5
    seed: int = 0

    @property
    def vector(self) -> np.ndarray:
        """float32 [n]: each block of another size than the last, and, of several, the middle one all zeros."""
        rng = np.random.default_rng(self.seed)
        rows = rng.normal(size=(self.blocks, self.codec.block)) * 8.0 ** -np.arange(self.blocks)[:, None]
        if self.blocks > 1:
            rows[self.blocks // 2] = 0
        return rows.astype(np.float32).reshape(-1)

    def there_and_back(self, x: Any, key: int = 0) -> np.ndarray:
        """The vector after its journey, [n]."""
        return np.asarray(self.codec.decode(self.codec.encode(jnp.asarray(x), jax.random.key(key)), len(x)))


def universal_codec() -> tuple[Law, ...]:
    """The laws for every codec.

    >>> [law.name for law in universal_codec()]
    ['size as said', 'pure', 'zeros stay zeros', 'what is not finite stays so']
    """
    return (
        Law('size as said', _size),
        Law('pure', _pure),
        Law('zeros stay zeros', _zeros),
        Law('what is not finite stays so', _nan),
    )


def _size(trial: CodecTrial) -> None:
    x = trial.vector
    message = trial.codec.encode(jnp.asarray(x), jax.random.key(0))
    if message.dtype != jnp.uint8 or message.shape != (trial.codec.size(x.size),):
        raise LawBroken(f'the message is {message.dtype}{message.shape}, promised uint8({trial.codec.size(x.size)},)')
    back = trial.there_and_back(x)
    if back.dtype != np.float32 or back.shape != x.shape:
        raise LawBroken(f'it decodes to {back.dtype}{back.shape}, promised float32{x.shape}')


def _pure(trial: CodecTrial) -> None:
    """The same key gives the same bytes, alone, under jit and in a batch."""
    x = jnp.stack([trial.vector, trial.vector[::-1]])
    keys = jax.random.split(jax.random.key(1), 2)
    alone = np.stack([trial.codec.encode(*args) for args in zip(x, keys, strict=True)])
    same_bits(
        np.stack([trial.codec.encode(*args) for args in zip(x, keys, strict=True)]), alone, 'the message made twice'
    )
    n = x.shape[1]
    decode = jax.vmap(lambda m: trial.codec.decode(m, n))
    batched = jax.jit(lambda x, keys: decode(jax.vmap(trial.codec.encode)(x, keys)))(x, keys)
    # A compiler may round a scale otherwise, and with it an entry at the edge of two codes: a few may differ a little.
    differ = np.abs(np.asarray(batched) - np.asarray(decode(jnp.asarray(alone))))
    if np.mean(differ > 1e-5 * np.abs(np.asarray(x)).max()) > 0.01:
        raise LawBroken('a jitted batch of vectors is not encoded as each vector alone')


def _zeros(trial: CodecTrial) -> None:
    if np.any(trial.there_and_back(np.zeros_like(trial.vector))):
        raise LawBroken('zeros come back as something else')


def _nan(trial: CodecTrial) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = trial.vector
        x[1] = bad
        if np.isfinite(trial.there_and_back(x)).all():
            raise LawBroken(f'a vector with {bad} comes back finite: nobody would learn of it')


def takes(formula: Callable[[int], int]) -> Law:
    """A message for n entries takes `formula(n)` bytes.

    >>> takes(lambda n: n).name
    'takes the bytes of its formula'
    """

    def check(trial: CodecTrial) -> None:
        for blocks in (1, 2, trial.blocks):
            n = blocks * trial.codec.block
            if trial.codec.size(n) != formula(n):
                raise LawBroken(f'{n} entries take {trial.codec.size(n)} bytes, promised {formula(n)}')

    return Law('takes the bytes of its formula', check)


def error_at_most(share: float) -> Law:
    """No entry is off by more than `share` times the largest magnitude of its block.

    >>> error_at_most(0.5).name
    'error at most 0.5 of the block'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.vector.reshape(-1, trial.codec.block)
        # Both signs, because the largest entry of a block is where codes run over.
        for key, sign in itertools.product(range(5), (1, -1)):
            off = np.abs(trial.there_and_back(sign * x.reshape(-1), key).reshape(x.shape) - sign * x).max(1)
            worst = float(np.max(off / np.maximum(np.abs(x).max(1), 1e-30)))
            if not worst <= share * (1 + 1e-5):
                raise LawBroken(f'off by {worst:.5g} of the block, promised at most {share:.5g}')

    return Law(f'error at most {share:.4g} of the block', check)


def contracts(delta: float) -> Law:
    """The squared error is at most 1 - `delta` of the squared norm: what error feedback converges by.

    >>> contracts(0.9).name
    'contracts by 0.9'
    """

    def check(trial: CodecTrial) -> None:
        for key, sign in itertools.product(range(5), (1, -1)):
            x = sign * trial.vector.astype(np.float64)
            left = float(np.sum((trial.there_and_back(x.astype(np.float32), key) - x) ** 2) / np.sum(x**2))
            if not left <= (1 - delta) * (1 + 1e-5):
                raise LawBroken(f'{left:.5g} of the squared norm is left, promised at most {1 - delta:.5g}')

    return Law(f'contracts by {delta:.4g}', check)


def idempotent() -> Law:
    """What has made the journey once comes back from a second one as it was, to rounding.

    >>> idempotent().name
    'idempotent'
    """

    def check(trial: CodecTrial) -> None:
        once = trial.there_and_back(trial.vector)
        close(trial.there_and_back(once), once, 'the vector after a second journey')

    return Law('idempotent', check)


def unbiased_codec(draws: int = 600) -> Law:
    """On average over keys a vector comes back as it was, block by block, as `jaxdist.laws.noise.centred` judges it.

    >>> unbiased_codec().name
    'unbiased'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.vector
        keys = jax.random.split(jax.random.key(trial.seed), draws)
        journey = jax.jit(jax.vmap(lambda key: trial.codec.decode(trial.codec.encode(jnp.asarray(x), key), x.size)))
        seen = np.asarray(journey(keys)).reshape(draws, -1, trial.codec.block)
        for i, block in enumerate(x.reshape(-1, trial.codec.block)):
            centred(seen[:, i], block.astype(np.float64), f'block {i}')

    return Law('unbiased', check)
