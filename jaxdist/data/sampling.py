"""Which examples are in the batch of a step: a pure function of (seed, step), without any state.

Random numbers are the raw words of Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3"), a counter that can be entered anywhere. NumPy promises those words for all versions, and not the methods
of `np.random.Generator`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxdist.core.errors import InputError

Parts = tuple[np.ndarray, ...]
"""Numbers of the examples that each worker owns; a single part is drawn from by all workers together."""

Choose = Callable[[int, int, int, int, int], np.ndarray]
"""`(count, seed, stream, step, size) -> [size]` numbers below `count`."""


class Rows(NamedTuple):
    """The rows of a batch.

    Attributes:
        numbers: [size], those of the examples, worker by worker.
        weight: [size], what each row counts, or None if all count one.
        own: [size], the same rows numbered within the part that they are drawn from, from 0 on.
    """

    numbers: np.ndarray
    weight: np.ndarray | None
    own: np.ndarray


def sampler(parts: Callable[[int], Parts], choose: Choose, places: int = 1) -> Callable[[int, int, int, int], Rows]:
    """`(seed, step, size, workers) -> Rows`: each worker's rows are chosen from its own part.

    A row of a worker that owns n_w of N examples counts n_w * workers / N, so that the weighted mean over the
    batch is an unbiased estimate of the mean over all examples.

    Args:
        parts: `workers -> parts`, asked once for each number of workers.
        choose: `in_epochs` or `at_random`.
        places: rows that each example stands for, such as the starts within a block of text; number n has the
            rows from `n * places` on.

    >>> draw = sampler(lambda workers: (np.array([0]), np.array([1, 2, 3])), in_epochs)
    >>> draw(0, 0, 4, 2).weight.tolist()
    [0.5, 0.5, 1.5, 1.5]
    >>> draw(0, 0, 6, 2).own.tolist()  # example 0 again and again, and the three others
    [0, 0, 0, 2, 1, 0]
    """
    divided = lru_cache(parts)

    def draw(seed: int, step: int, size: int, workers: int) -> Rows:
        check_batch(seed, step, size, workers)
        owned = divided(workers)
        each = size // len(owned)
        own = [choose(len(part) * places, seed, stream, step, each) for stream, part in enumerate(owned)]
        numbers = [_rows(part, chosen, places) for part, chosen in zip(owned, own, strict=True)]
        sizes = np.array([len(p) for p in owned])
        equal = (sizes == sizes[0]).all()
        weight = None if equal else np.repeat(sizes / sizes.mean(), each).astype(np.float32)
        return Rows(np.concatenate(numbers), weight, np.concatenate(own))

    return draw


def _rows(part: np.ndarray, chosen: np.ndarray, places: int) -> np.ndarray:
    """The rows of the chosen places in a part."""
    examples, place = np.divmod(chosen, places)
    return part[examples] * places + place


def check_batch(seed: int, step: int, size: int, workers: int) -> None:
    """Nothing, if there is such a batch.

    Raises:
        InputError: workers do not divide the batch, or a number is out of range.

    >>> check_batch(0, 0, 30, 8)
    Traceback (most recent call last):
    jaxdist.InputError: a batch of 30 examples cannot be divided among 8 workers: use 24 or 32
    """
    if seed < 0 or step < 0:
        raise InputError(f'seed and step must be 0 or more, not {seed} and {step}')
    if workers < 1:
        raise InputError(f'there must be 1 worker or more, not {workers}')
    if size < 1 or size % workers:
        below = max(size, 0) // workers * workers
        fits = f'{below} or {below + workers}' if below else f'{workers}'
        raise InputError(f'a batch of {size} examples cannot be divided among {workers} workers: use {fits}')


def in_epochs(count: int, seed: int, stream: int, step: int, size: int) -> np.ndarray:
    """Numbers [size] without replacement: each of `count` once in an epoch, then in a new order.

    A batch may hold the end of one epoch and the beginning of the next.

    >>> sorted(in_epochs(6, seed=1, stream=0, step=0, size=6).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    positions = np.arange(step * size, (step + 1) * size)
    epochs, places = np.divmod(positions, count)
    pieces = [permutation(count, seed, stream, int(e))[places[epochs == e]] for e in np.unique(epochs)]
    return np.concatenate(pieces)


def at_random(count: int, seed: int, stream: int, step: int, size: int) -> np.ndarray:
    """Numbers [size] with replacement, each of `count` equally likely.

    >>> bool((at_random(6, seed=1, stream=0, step=0, size=100) < 6).all())
    True
    """
    return (_words(size, seed, stream, step) % np.uint64(count)).astype(np.int64)


@lru_cache(maxsize=256)
def permutation(count: int, seed: int, *stream: int) -> np.ndarray:
    """A read-only permutation of `range(count)`; other streams of a seed give other ones.

    >>> sorted(permutation(4, 0, 7).tolist())
    [0, 1, 2, 3]
    """
    order = np.argsort(_words(count, seed, *stream), kind='stable')
    order.setflags(write=False)
    return order


def _words(count: int, seed: int, *stream: int) -> np.ndarray:
    """Random 64-bit words [count] of one stream."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(count)
