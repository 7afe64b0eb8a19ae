"""Sampling: the examples in the batch of a step, as a pure function of (seed, step) without state.

Random numbers are the raw words of Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a
counter-based generator, which can start at any step. NumPy keeps these words the same in all versions, but not the
methods of `np.random.Generator`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxdist.core.errors import InputError

Parts = tuple[np.ndarray, ...]
"""Indices of each worker's examples; of a single part all workers draw."""

Choose = Callable[[int, int, int, int, int], np.ndarray]
"""`(count, seed, stream, step, size) -> [size]` indices below `count`."""


class Rows(NamedTuple):
    """The rows of a batch.

    Attributes:
        indices: the examples' indices [size], worker by worker.
        weight: the rows' weights [size], or None if all are 1.
        local: the rows' indices [size] within the part that they are drawn from, from 0 on.
    """

    indices: np.ndarray
    weight: np.ndarray | None
    local: np.ndarray


def sampler(parts: Callable[[int], Parts], choose: Choose, places: int = 1) -> Callable[[int, int, int, int], Rows]:
    """`(seed, step, size, workers) -> Rows`, which draws each worker's rows from its part.

    A row of a worker with n_w of N examples has the weight n_w * workers / N, so that the weighted mean over the batch
    is an unbiased estimate of the mean over all examples.

    Args:
        parts: `workers -> parts`, called once for each number of workers.
        choose: `in_epochs` or `at_random`.
        places: rows per example, such as the starting positions in a block of text; example n has the rows from
            `n * places` on.

    >>> draw = sampler(lambda workers: (np.array([0]), np.array([1, 2, 3])), in_epochs)
    >>> draw(0, 0, 4, 2).weight.tolist()
    [0.5, 0.5, 1.5, 1.5]
    >>> draw(0, 0, 6, 2).local.tolist()  # three times the only example of worker 0, and the three of worker 1
    [0, 0, 0, 2, 1, 0]
    """
    cached_parts = lru_cache(parts)

    def draw(seed: int, step: int, size: int, workers: int) -> Rows:
        check_batch(seed, step, size, workers)
        divided = cached_parts(workers)
        each = size // len(divided)
        local = [choose(len(part) * places, seed, stream, step, each) for stream, part in enumerate(divided)]
        indices = [_rows(part, chosen, places) for part, chosen in zip(divided, local, strict=True)]
        sizes = np.array([len(p) for p in divided])
        equal = (sizes == sizes[0]).all()
        weight = None if equal else np.repeat(sizes / sizes.mean(), each).astype(np.float32)
        return Rows(np.concatenate(indices), weight, np.concatenate(local))

    return draw


def _rows(part: np.ndarray, chosen: np.ndarray, places: int) -> np.ndarray:
    """The indices of rows that are chosen within a part."""
    examples, place = np.divmod(chosen, places)
    return part[examples] * places + place


def check_batch(seed: int, step: int, size: int, workers: int) -> None:
    """Checks the arguments of a batch.

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
    """Indices [size] without replacement: each of `count` once per epoch, in a new order for each.

    A batch may contain the end of one epoch and the beginning of the next.

    >>> sorted(in_epochs(6, seed=1, stream=0, step=0, size=6).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    positions = np.arange(step * size, (step + 1) * size)
    epochs, places = np.divmod(positions, count)
    pieces = [permutation(count, seed, stream, int(e))[places[epochs == e]] for e in np.unique(epochs)]
    return np.concatenate(pieces)


def at_random(count: int, seed: int, stream: int, step: int, size: int) -> np.ndarray:
    """Indices [size] with replacement, uniformly from `count`.

    >>> bool((at_random(6, seed=1, stream=0, step=0, size=100) < 6).all())
    True
    """
    return (_words(size, seed, stream, step) % np.uint64(count)).astype(np.int64)


@lru_cache(maxsize=256)
def permutation(count: int, seed: int, *stream: int) -> np.ndarray:
    """A read-only permutation of `range(count)`, independent for each stream of a seed.

    >>> sorted(permutation(4, 0, 7).tolist())
    [0, 1, 2, 3]
    """
    order = np.argsort(_words(count, seed, *stream), kind='stable')
    order.setflags(write=False)
    return order


def _words(count: int, seed: int, *stream: int) -> np.ndarray:
    """Random 64-bit words [count] of one stream."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(count)
