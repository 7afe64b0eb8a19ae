"""Laws of codecs: the universal ones, and those that a codec may claim."""

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
"""The test matrix of a codec of matrices has `ROWS` rows for each of the trial's blocks, and `COLUMNS` columns."""


@dataclass(frozen=True, eq=False)
class CodecTrial:
    """A codec under test.

    Attributes:
        codec: the codec, as a registered function returns it.
        blocks: the length of the test vector, in blocks of the codec.
        seed: seed of the random test vector.
    """

    codec: Any
    blocks: int = 5
    seed: int = 0

    @property
    def of_vectors(self) -> bool:
        """Whether the codec encodes vectors as bytes; others are tested with a matrix, whose rows count as blocks."""
        return hasattr(self.codec, 'encode')

    @property
    def vector(self) -> np.ndarray:
        """The float32 test vector, or matrix. Block magnitudes differ, and of several blocks the middle one is zero."""
        rng = np.random.default_rng(self.seed)
        count, length = (self.blocks, self.codec.block) if self.of_vectors else (ROWS * self.blocks, COLUMNS)
        rows = rng.normal(size=(count, length)) * 8.0 ** -(np.arange(count) % 5)[:, None]
        if self.blocks > 1:
            rows[count // 2] = 0
        return rows.astype(np.float32).reshape(-1 if self.of_vectors else rows.shape)

    def rows(self, x: Any) -> np.ndarray:
        """A vector's blocks [blocks, block], or a matrix's rows."""
        return np.asarray(x).reshape(-1, self.codec.block if self.of_vectors else COLUMNS)

    def round_trip(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """One worker's array encoded and decoded again; traceable."""
        return _round_trip(self.codec, x, key)

    @cached_property
    def compiled(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """`round_trip`, jitted, as in training."""
        return jax.jit(self.round_trip)

    def decoded(self, x: Any, key: int = 0) -> np.ndarray:
        """The array after a jitted round trip with the random key number `key`."""
        return np.asarray(self.compiled(jnp.asarray(x), jax.random.key(key)))

    def draws(self, count: int) -> np.ndarray:
        """The test vector after round trips with `count` random keys: [count, blocks, block] in float64."""
        keys, x = jax.random.split(jax.random.key(self.seed), count), jnp.asarray(self.vector)
        decoded = np.asarray(jax.jit(jax.vmap(lambda key: self.round_trip(x, key)))(keys), np.float64)
        return decoded.reshape(count, *self.rows(self.vector).shape)


def _round_trip(codec: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    if codec is None:
        return x
    if hasattr(codec, 'pick'):
        return _round_trip(codec.pick([('x', x.shape)])[0], x, key)
    if hasattr(codec, 'encode'):
        vector = jnp.pad(x.reshape(-1), (0, -x.size % codec.block))
        return codec.decode(codec.encode(vector, key), vector.size)[: x.size].reshape(x.shape)
    # A codec that is a reduction over workers: here over one worker.
    reduce = jax.vmap(lambda x: codec.mean([x], [codec.start(x.shape, key)], 'one')[0][0], axis_name='one')
    return reduce(x[None])[0]


def universal_codec() -> tuple[Law, ...]:
    """The laws for every codec.

    >>> [law.name for law in universal_codec()]
    ['message size as declared', 'pure', 'same without jit', 'zeros stay zeros', 'non-finite stays non-finite',
     'padding does not count']
    """
    return (
        Law('message size as declared', _size),
        Law('pure', _pure),
        Law('same without jit', _without_jit),
        Law('zeros stay zeros', _zeros),
        Law('non-finite stays non-finite', _nan),
        Law('padding does not count', _padding),
    )


def _size(trial: CodecTrial) -> None:
    x, n, key = trial.vector, trial.vector.size, jax.random.key(0)
    if not trial.of_vectors:
        decoded = jax.eval_shape(trial.round_trip, x, key)
    else:
        message = jax.eval_shape(trial.codec.encode, x, key)
        if message.dtype != jnp.uint8 or message.shape != (trial.codec.size(n),):
            raise LawBroken(f'the message is {message.dtype}{message.shape}, expected uint8({trial.codec.size(n)},)')
        decoded = jax.eval_shape(lambda message: trial.codec.decode(message, n), message)
    if decoded.dtype != jnp.float32 or decoded.shape != x.shape:
        raise LawBroken(f'the message decodes to {decoded.dtype}{decoded.shape}, expected float32{x.shape}')


def _pure(trial: CodecTrial) -> None:
    """The same key gives the same bits, and under `vmap` the same numbers."""
    x = np.stack([trial.vector, trial.vector[::-1]])
    if trial.of_vectors:
        _same_messages(trial, x[0])
    single = np.stack([trial.decoded(row, key) for key, row in enumerate(x)])
    again = np.stack([trial.decoded(row, key) for key, row in enumerate(x)])
    same_bits(again, single, 'the round trip made twice')
    keys = jnp.stack([jax.random.key(key) for key in range(len(x))])
    batched = np.asarray(jax.jit(jax.vmap(trial.round_trip))(jnp.asarray(x), keys))
    _nearly_equal(batched, single, x, 'under vmap')


def _same_messages(trial: CodecTrial, x: np.ndarray) -> None:
    """The message of `x` is the same when it is encoded three times, by newly traced functions."""
    arguments = jnp.asarray(x), jax.random.key(1)
    lowered = [jax.jit(lambda x, key: trial.codec.encode(x, key)).lower(*arguments) for _ in range(3)]
    # The same text compiles to the same program, so only different texts are run: compiling takes most of the time.
    programs = {one.as_text(): one for one in lowered}
    messages = [np.asarray(one.compile()(*arguments)) for one in programs.values()] if len(programs) > 1 else []
    same_bits(messages[1:], messages[:1] * len(messages[1:]), 'the same vector encoded twice')


def _without_jit(trial: CodecTrial) -> None:
    """Outside of jit, operation by operation, the numbers are those of the jitted program."""
    x = trial.vector
    eager = np.asarray(trial.round_trip(jnp.asarray(x), jax.random.key(0)))
    _nearly_equal(eager, trial.decoded(x), x, 'without jit')


def _nearly_equal(actual: np.ndarray, expected: np.ndarray, x: np.ndarray, how: str) -> None:
    # Another program may round a scale differently, and then an entry between two codes: 1 % of the entries may differ.
    if np.mean(np.abs(actual - expected) > 1e-5 * np.abs(x).max()) > 0.01:
        raise LawBroken(f'{how} a vector decodes to other numbers than alone in a jitted program')


def _zeros(trial: CodecTrial) -> None:
    if np.any(trial.decoded(np.zeros_like(trial.vector))):
        raise LawBroken('zeros decode to something else')


def _nan(trial: CodecTrial) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = trial.vector
        x.reshape(-1)[1] = bad
        if np.isfinite(trial.decoded(x)).all():
            raise LawBroken(f'a vector with {bad} decodes to finite numbers, which would hide the error')


def _padding(trial: CodecTrial) -> None:
    """Of a block of ones the last ones may be padding: the others are decoded no worse."""
    if not trial.of_vectors:
        return
    n = trial.codec.block

    @jax.jit
    def decoded(real: jax.Array) -> jax.Array:
        ones = real.astype(jnp.float32)
        return trial.codec.decode(trial.codec.message(ones, real, jax.random.key(0)), n)

    def error(count: int) -> float:
        return float(np.abs(np.asarray(decoded(jnp.arange(n) < count))[:count] - 1).max())

    whole, part = error(n), error(n // 2 + 1)
    if not part <= whole + 1e-5:
        raise LawBroken(
            f'{n // 2 + 1} ones and padding are decoded with an error of {part:.4g}, {n} ones of {whole:.4g}'
        )


def takes(formula: Callable[[int], int]) -> Law:
    """A message for n entries takes `formula(n)` bytes.

    >>> takes(lambda n: n).name
    'takes the bytes of its formula'
    """

    def check(trial: CodecTrial) -> None:
        for blocks in (1, 2, trial.blocks):
            n = blocks * trial.codec.block
            if trial.codec.size(n) != formula(n):
                raise LawBroken(f'{n} entries take {trial.codec.size(n)} bytes, expected {formula(n)}')

    return Law('takes the bytes of its formula', check)


def error_at_most(share: float) -> Law:
    """No entry is off by more than `share` times the largest magnitude of its block.

    >>> error_at_most(0.5).name
    "error at most 0.5 of the block's maximum"
    """

    def check(trial: CodecTrial) -> None:
        x = trial.rows(trial.vector)
        # Both signs, because codes may overflow at a block's largest entry, in one of the signs only.
        for key, sign in itertools.product(range(5), (1, -1)):
            decoded = trial.rows(trial.decoded(sign * trial.vector, key))
            off = np.abs(decoded - sign * x).max(1)
            worst = float(np.max(off / np.maximum(np.abs(x).max(1), 1e-30)))
            if not worst <= share * (1 + 1e-5):
                raise LawBroken(f"off by {worst:.5g} of the block's maximum, expected at most {share:.5g}")

    return Law(f"error at most {share:.4g} of the block's maximum", check)


def contracts(delta: float) -> Law:
    """The squared error is at most 1 - `delta` times the squared norm: the condition for error feedback to converge.

    >>> contracts(0.9).name
    'contracts by 0.9'
    """

    def check(trial: CodecTrial) -> None:
        for key, sign in itertools.product(range(5), (1, -1)):
            x = sign * trial.vector.astype(np.float64)
            lost = float(np.sum((trial.decoded(x.astype(np.float32), key) - x) ** 2) / np.sum(x**2))
            if not lost <= (1 - delta) * (1 + 1e-5):
                raise LawBroken(f'{lost:.5g} of the squared norm is lost, expected at most {1 - delta:.5g}')

    return Law(f'contracts by {delta:.4g}', check)


def idempotent() -> Law:
    """A second round trip does not change the decoded vector, to rounding.

    >>> idempotent().name
    'idempotent'
    """

    def check(trial: CodecTrial) -> None:
        once = trial.decoded(trial.vector)
        close(trial.decoded(once), once, 'the vector after a second round trip')

    return Law('idempotent', check)


def unbiased_codec(draws: int = 600) -> Law:
    """The mean over random keys of the decoded vector is the vector, block by block; tested by `noise.centred`.

    >>> unbiased_codec().name
    'unbiased'
    """

    def check(trial: CodecTrial) -> None:
        decoded = trial.draws(draws)
        for i, block in enumerate(trial.rows(trial.vector)):
            centred(decoded[:, i], block.astype(np.float64), f'block {i}')

    return Law('unbiased', check)
