"""A law: a promise about an algorithm or a codec, and the check that it is kept."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class LawBroken(AssertionError):  # noqa: N818 (a law is broken, it is not an error)
    """A law that does not hold; its text says what was promised and what was seen."""


class Law(NamedTuple):
    """A promise that can be checked.

    Attributes:
        name: a few words, such as `delays by 3`.
        check: takes a `Trial` (algorithms) or a `CodecTrial` (codecs) and raises `LawBroken` where the law does not
            hold.
        workers: the number of workers that it is for, or None if it is for any.
    """

    name: str
    check: Callable[[Any], None]
    workers: int | None = None


class LawResult(NamedTuple):
    """What became of one law: `problem` is empty where it holds."""

    law: str
    problem: str


def check_law(law: Law, trial: Any) -> LawResult:
    """Whether the law holds in this trial. An error of the tried code breaks the law too.

    >>> def fails(trial):
    ...     raise LawBroken('seen 2, promised 1')
    >>> check_law(Law('is one', fails), None)
    LawResult(law='is one', problem='seen 2, promised 1')
    """
    try:
        law.check(trial)
    except LawBroken as broken:
        return LawResult(law.name, str(broken))
    except Exception as error:  # the code on trial is anybody's, and may raise anything
        return LawResult(law.name, f'{type(error).__name__}: {error}')
    return LawResult(law.name, '')


def same_bits(seen: Any, promised: Any, what: str) -> None:
    """Asserts that two pytrees hold the same bits.

    Raises:
        LawBroken: naming the leaf that differs most.

    >>> same_bits({'a': np.ones(2)}, {'a': np.ones(2)}, 'the sums')
    """
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(to_numpy(seen))[0], _leaves(promised), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
            raise LawBroken(
                f'{what}: leaf {jax.tree_util.keystr(path)} has other bits; seen {_short(a)}, promised {_short(b)}'
            )


def close(seen: Any, promised: Any, what: str, tolerance: float = 4e-6, beside: Any = None) -> None:
    """Asserts that two pytrees agree to `tolerance` times the largest magnitude that is promised, leaf by leaf.

    Args:
        seen: what came out.
        promised: what was to come out.
        what: its name, for the message.
        tolerance: the least that counts; dtypes that round more get twice their rounding.
        beside: a pytree alike whose magnitudes count as those promised do: what was added up on the way, and rounded.

    Raises:
        LawBroken: naming the leaf and the largest difference.

    >>> close({'a': np.ones(2)}, {'a': np.ones(2) + 1e-7}, 'the sums')
    """
    others = _leaves(promised if beside is None else beside)
    paths = jax.tree_util.tree_flatten_with_path(to_numpy(seen))[0]
    for (path, a), b, c in zip(paths, _leaves(promised), others, strict=True):
        name = jax.tree_util.keystr(path)
        if a.shape != b.shape:
            raise LawBroken(f'{what}: leaf {name} has shape {a.shape}, promised is {b.shape}')
        off = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
        least = max(tolerance, 2 * float(jnp.finfo(a.dtype).eps)) if jnp.issubdtype(a.dtype, jnp.inexact) else 0
        scale = max(np.abs(x.astype(np.float64)).max(initial=0) for x in (b, c))
        if not off <= least * max(scale, 1e-30):
            raise LawBroken(f'{what}: leaf {name} is off by {off:.3g}; seen {_short(a)}, promised {_short(b)}')


def to_numpy(tree: Any) -> Any:
    """The pytree's leaves as NumPy arrays, random keys as their data.

    >>> to_numpy([jnp.ones(1)])
    [array([1.], dtype=float32)]
    """
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def _leaves(tree: Any) -> list[np.ndarray]:
    return jax.tree.leaves(to_numpy(tree))


def _short(x: np.ndarray) -> str:
    return np.array2string(x.reshape(-1)[:4], precision=6, separator=', ') + (' ...' if x.size > 4 else '')
