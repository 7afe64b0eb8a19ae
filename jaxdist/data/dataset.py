"""The interface of data sets: training batches, held-out batches, facts, and a baseline loss."""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Task
from jaxdist.data.sampling import Rows

Facts = dict[str, str | int | float]
"""Facts about a data set, by name: its source, sizes and digest."""

Fetch = Callable[[np.ndarray], Batch]
"""From indices of examples [B] to their batch."""


class Draw(Protocol):
    """Makes the batch of a step."""

    def __call__(self, seed: int, step: int, size: int, workers: int) -> Batch:
        """The global batch: NumPy arrays [size, ...]; the rows of worker w begin at `w * size / workers`."""


class Data(NamedTuple):
    """A data set, divided among workers.

    Attributes:
        task: the prediction task.
        batch: `(seed, step, size, workers) -> Batch`, a pure function that does not depend on the number of processes
            and devices. See `jaxdist.core.types.Batch` for its fields.
        held_out: `size -> batches` over all held-out examples, in order. Each has `size` rows and a `weight` [size];
            the last is padded with rows of weight 0.
        facts: name, sizes and digest, which identify the data.
        baseline: held-out loss of the best constant prediction, in nats or as half the squared error.
        baseline_name: the name of that prediction.
    """

    task: Task
    batch: Draw
    held_out: Callable[[int], Iterator[Batch]]
    facts: Facts
    baseline: float
    baseline_name: str


def batches(draw: Callable[[int, int, int, int], Rows], fetch: Fetch, numbered: bool = False) -> Draw:
    """The training batches: rows are drawn, then fetched; with a `weight` if rows count unequally.

    Args:
        draw: `(seed, step, size, workers) -> Rows`, the rows of a step.
        fetch: from indices of examples to their batch.
        numbered: whether batches have a field `row`, the index of each row within the part that it is drawn from.

    >>> from jaxdist.data.sampling import Rows
    >>> draw = lambda seed, step, size, workers: Rows(np.arange(size) + step, None, np.arange(size))
    >>> batches(draw, lambda rows: {'x': rows})(seed=0, step=5, size=2, workers=1)
    {'x': array([5, 6])}
    """

    def batch(seed: int, step: int, size: int, workers: int) -> Batch:
        rows = draw(seed, step, size, workers)
        fetched = dict(fetch(rows.indices))
        if numbered:
            fetched['row'] = rows.local.astype(np.int32)
        if rows.weight is not None:
            fetched['weight'] = rows.weight
        return fetched

    return batch


def in_order(count: int, fetch: Fetch) -> Callable[[int], Iterator[Batch]]:
    """Batches of a given size over `count` examples, in order; the last is padded with rows of weight 0.

    >>> [b['weight'].tolist() for b in in_order(3, lambda rows: {'x': rows})(2)]
    [[1.0, 1.0], [1.0, 0.0]]
    """

    def held_out(size: int) -> Iterator[Batch]:
        if size < 1:
            raise InputError(f'a held-out batch must have 1 row or more, not {size}')
        return (one(first, size) for first in range(0, count, size))

    def one(first: int, size: int) -> Batch:
        rows = np.arange(first, first + size)
        real = rows < count
        return {**fetch(np.where(real, rows, 0)), 'weight': real.astype(np.float32)}

    return held_out


def held_out_count(count: int, fraction: float, name: str) -> int:
    """The number of held-out examples among `count`, such that at least one is held out and one is for training.

    Args:
        count: the number of examples.
        fraction: the fraction that is held out.
        name: the word for examples in error messages, such as 'rows'.

    Raises:
        InputError: the fraction is not between 0 and 1, or there are fewer than two examples.

    >>> held_out_count(10, 0.2, 'rows')
    2
    """
    if not 0 < fraction < 1:
        raise InputError(f'held_out={fraction} must be a fraction between 0 and 1: the part held out from training')
    if count < 2:
        raise InputError(f'{count} {name} cannot be split into training and held-out data')
    return min(max(round(count * fraction), 1), count - 1)


def constant_loss(task: Task, train: np.ndarray, held: np.ndarray) -> float:
    """The held-out loss of the best constant prediction, which ignores the input.

    For labels and tokens this is the cross entropy, in nats, of the held-out ones under the training histogram with
    add-one smoothing, so that labels without training examples have a probability. For values it is half the mean
    squared distance from the training mean.

    >>> round(constant_loss(Task('classes', (1,), 2), np.array([0, 0, 1, 1]), np.array([0, 1])), 4)
    0.6931
    """
    if task.kind == 'values':
        return float(0.5 * np.square(held - train.mean()).mean())
    histogram = np.bincount(train, minlength=task.classes) + 1
    information = -np.log(histogram / histogram.sum())
    return float(information @ (np.bincount(held, minlength=task.classes) / len(held)))


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the arrays' bytes, as hexadecimal text; little-endian on every machine.

    >>> digest(np.array([1], np.int32))[:8]
    '67abdd72'
    """
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder('<')).tobytes())
    return sha.hexdigest()
