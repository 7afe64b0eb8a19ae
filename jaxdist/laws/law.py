"""A law: a property of an algorithm or a codec, and the check that it holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class LawBroken(AssertionError):  # noqa: N818 (a law is broken, it is not an error)
    """A law that does not hold; the message gives the expected and the actual values."""


class Law(NamedTuple):
    """A property that can be checked.

    Attributes:
        name: a few words, such as `delays by 3`.
        check: takes a `Trial` (algorithms) or a `CodecTrial` (codecs) and raises `LawBroken` if the law does not hold.
        workers: the number of workers that the law is for, or None if it is for any.
    """

    name: str
    check: Callable[[Any], None]
    workers: int | None = None


class LawResult(NamedTuple):
    """The result of checking one law.

    Attributes:
        law: the law's name.
        problem: why the law does not hold; empty if it holds.
    """

    law: str
    problem: str


def check_law(law: Law, trial: Any) -> LawResult:
    """Whether the law holds in this trial. An error raised by the code under test breaks the law too.

    >>> def fails(trial):
    ...     raise LawBroken('got 2, expected 1')
    >>> check_law(Law('is one', fails), None)
    LawResult(law='is one', problem='got 2, expected 1')
    """
    try:
        law.check(trial)
    except LawBroken as broken:
        return LawResult(law.name, str(broken))
    except Exception as error:  # a user's code may raise anything
        return LawResult(law.name, f'{type(error).__name__}: {error}')
    return LawResult(law.name, '')


def same_bits(actual: Any, expected: Any, name: str) -> None:
    """Asserts that two pytrees have the same shapes, dtypes and bits.

    Args:
        actual: the pytree under test.
        expected: a pytree of the same structure.
        name: name of the compared values, for the message.

    Raises:
        LawBroken: with the first leaf that differs.

    >>> same_bits({'a': np.ones(2)}, {'a': np.ones(2)}, 'the sums')
    """
    leaves = jax.tree_util.tree_flatten_with_path(to_numpy(actual))[0]
    for (path, a), b in zip(leaves, _leaves(expected), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
            raise LawBroken(
                f'{name}: leaf {jax.tree_util.keystr(path)} has other bits; got {_short(a)}, expected {_short(b)}'
            )


def close(actual: Any, expected: Any, name: str, tolerance: float = 4e-6, magnitudes: Any = None) -> None:
    """Asserts that two pytrees agree, leaf by leaf, to `tolerance` times the largest expected magnitude of the leaf.

    Args:
        actual: the pytree under test.
        expected: a pytree of the same structure.
        name: name of the compared values, for the message.
        tolerance: the relative tolerance; for a dtype with a larger rounding error, twice that error is allowed.
        magnitudes: a pytree of the same structure whose magnitudes count beside the expected ones: intermediate values
            that were rounded. None to count the expected ones only.

    Raises:
        LawBroken: with the first leaf that differs, and its largest difference.

    >>> close({'a': np.ones(2)}, {'a': np.ones(2) + 1e-7}, 'the sums')
    """
    others = _leaves(expected if magnitudes is None else magnitudes)
    leaves = jax.tree_util.tree_flatten_with_path(to_numpy(actual))[0]
    for (path, a), b, c in zip(leaves, _leaves(expected), others, strict=True):
        leaf = jax.tree_util.keystr(path)
        if a.shape != b.shape:
            raise LawBroken(f'{name}: leaf {leaf} has shape {a.shape}, expected {b.shape}')
        off = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
        relative = max(tolerance, 2 * float(jnp.finfo(a.dtype).eps)) if jnp.issubdtype(a.dtype, jnp.inexact) else 0
        scale = max(np.abs(x.astype(np.float64)).max(initial=0) for x in (b, c))
        # Written so that NaN breaks the law; 1e-30 lets zeros differ by a denormal number.
        if not off <= relative * max(scale, 1e-30):
            raise LawBroken(f'{name}: leaf {leaf} is off by {off:.3g}; got {_short(a)}, expected {_short(b)}')


def to_numpy(tree: Any) -> Any:
    """The pytree's leaves as NumPy arrays, random keys as their data.

    >>> to_numpy([jax.random.key(1)])
    [array([0, 1], dtype=uint32)]
    """
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def _leaves(tree: Any) -> list[np.ndarray]:
    return jax.tree.leaves(to_numpy(tree))


def _short(x: np.ndarray) -> str:
    return np.array2string(x.reshape(-1)[:4], precision=6, separator=', ') + (' ...' if x.size > 4 else '')
