"""Laws of codecs: every codec's, and those that one may claim."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.laws.law import Law, LawBroken, close, same_bits
from jaxdist.laws.noise import centred

ROWS, COLUMNS = 8, 64
"""Of the matrix that a codec which is not one of vectors is tried with; so many rows for each of its blocks."""


@dataclass(frozen=True, eq=False)
class CodecTrial:
    """A codec on trial.

    Attributes:
        codec: what a function under `@codec` returns.
        blocks: the length of the vector, in the codec's blocks.
        seed: of the vector.
    """

    codec: Any
    blocks: int = 5
    seed: int = 0

    @property
    def of_vectors(self) -> bool:
        """Whether it turns vectors into bytes; others are tried with a matrix, whose rows stand for blocks."""
        return hasattr(self.codec, 'encode')

    @property
    def vector(self) -> np.ndarray:
        """float32: each block of another size than the last, and, of several, the middle one all zeros."""
        rng = np.random.default_rng(self.seed)
        count, length = (self.blocks, self.codec.block) if self.of_vectors else (ROWS * self.blocks, COLUMNS)
        rows = rng.normal(size=(count, length)) * 8.0 ** -(np.arange(count) % 5)[:, None]
        if self.blocks > 1:
            rows[count // 2] = 0
        return rows.astype(np.float32).reshape(-1 if self.of_vectors else rows.shape)

    def rows(self, x: Any) -> np.ndarray:
        """A vector's blocks, or a matrix's rows."""
        return np.asarray(x).reshape(-1, self.codec.block if self.of_vectors else COLUMNS)

    def journey(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """What one worker's array becomes on the way, by a function that can be traced."""
        return _journey(self.codec, x, key)

    @cached_property
    def compiled(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The journey as one program, which is how it is made in training."""
        return jax.jit(self.journey)

    def there_and_back(self, x: Any, key: int = 0) -> np.ndarray:
        """The array after its journey."""
        return np.asarray(self.compiled(jnp.asarray(x), jax.random.key(key)))

    def draws(self, count: int) -> np.ndarray:
        """The vector after journeys with so many keys: [count, blocks, block] in float64."""
        keys, x = jax.random.split(jax.random.key(self.seed), count), jnp.asarray(self.vector)
        seen = np.asarray(jax.jit(jax.vmap(lambda key: self.journey(x, key)))(keys), np.float64)
        return seen.reshape(count, *self.rows(self.vector).shape)


def _journey(codec: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    if codec is None:
        return x
    if hasattr(codec, 'pick'):
        return _journey(codec.pick([('x', x.shape)])[0], x, key)
    if hasattr(codec, 'encode'):
        vector = jnp.pad(x.reshape(-1), (0, -x.size % codec.block))
        return codec.decode(codec.encode(vector, key), vector.size)[: x.size].reshape(x.shape)
    alone = jax.vmap(lambda x: codec.mean([x], [codec.start(x.shape, key)], 'alone')[0][0], axis_name='alone')
    return alone(x[None])[0]


def universal_codec() -> tuple[Law, ...]:
    """The laws for every codec.

    >>> [law.name for law in universal_codec()]
    ['size as said', 'pure', 'the same operation by operation', 'zeros stay zeros', 'what is not finite stays so']
    """
    return (
        Law('size as said', _size),
        Law('pure', _pure),
        Law('the same operation by operation', _by_operation),
        Law('zeros stay zeros', _zeros),
        Law('what is not finite stays so', _nan),
    )


def _size(trial: CodecTrial) -> None:
    x = trial.vector
    if not trial.of_vectors:
        back = trial.there_and_back(x)
    else:
        message = trial.codec.encode(jnp.asarray(x), jax.random.key(0))
        if message.dtype != jnp.uint8 or message.shape != (trial.codec.size(x.size),):
            raise LawBroken(
                f'the message is {message.dtype}{message.shape}, promised uint8({trial.codec.size(x.size)},)'
            )
        back = trial.codec.decode(message, x.size)
    if back.dtype != np.float32 or back.shape != x.shape:
        raise LawBroken(f'it decodes to {back.dtype}{back.shape}, promised float32{x.shape}')


def _pure(trial: CodecTrial) -> None:
    """The same key gives the same bits; and the same numbers in one program and in a batch."""
    x = np.stack([trial.vector, trial.vector[::-1]])
    if trial.of_vectors:
        messages = _messages(trial, x[0])
        same_bits(messages[1:], [messages[0]] * 2, 'the message made twice')
    alone = np.stack([trial.there_and_back(row, key) for key, row in enumerate(x)])
    again = np.stack([trial.there_and_back(row, key) for key, row in enumerate(x)])
    same_bits(again, alone, 'the journey made twice')
    keys = jnp.stack([jax.random.key(key) for key in range(len(x))])
    batched = np.asarray(jax.jit(jax.vmap(trial.journey))(jnp.asarray(x), keys))
    _nearly_alike(batched, alone, x, 'a batch of vectors')


def _messages(trial: CodecTrial, x: np.ndarray) -> list[np.ndarray]:
    """The message of `x`, encoded three times by functions that are traced afresh."""
    arguments = jnp.asarray(x), jax.random.key(1)
    lowered = [jax.jit(lambda x, key: trial.codec.encode(x, key)).lower(*arguments) for _ in range(3)]
    # One text compiles to one program: compiling takes longer than all else here.
    programs = {text: one.compile() for one in lowered if (text := one.as_text())}
    return [np.asarray(programs[one.as_text()](*arguments)) for one in lowered]


def _by_operation(trial: CodecTrial) -> None:
    """Outside of a program, operation by operation, it gives the numbers that it gives in one program."""
    x = trial.vector
    apart = np.asarray(trial.journey(jnp.asarray(x), jax.random.key(0)))
    _nearly_alike(apart, trial.there_and_back(x), x, 'operation by operation one')


def _nearly_alike(seen: np.ndarray, promised: np.ndarray, x: np.ndarray, how: str) -> None:
    # A compiler may round a scale otherwise, and with it an entry at the edge of two codes: a few may differ a little.
    if np.mean(np.abs(seen - promised) > 1e-5 * np.abs(x).max()) > 0.01:
        raise LawBroken(f'{how} is not encoded as a vector alone in one program')


def _zeros(trial: CodecTrial) -> None:
    if np.any(trial.there_and_back(np.zeros_like(trial.vector))):
        raise LawBroken('zeros come back as something else')


def _nan(trial: CodecTrial) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = trial.vector
        x.reshape(-1)[1] = bad
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
        x = trial.rows(trial.vector)
        # Both signs, because the largest entry of a block is where codes run over.
        for key, sign in itertools.product(range(5), (1, -1)):
            back = trial.rows(trial.there_and_back(sign * trial.vector, key))
            off = np.abs(back - sign * x).max(1)
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
        seen = trial.draws(draws)
        for i, block in enumerate(trial.rows(trial.vector)):
            centred(seen[:, i], block.astype(np.float64), f'block {i}')

    return Law('unbiased', check)
