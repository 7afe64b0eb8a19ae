"""Data sets of inputs and targets in memory, optionally in two groups, divided among workers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.spelling import nearest
from jaxdist.core.types import Batch, Task
from jaxdist.data.dataset import Data, Facts, batches, constant_loss, digest, held_out_count, in_order
from jaxdist.data.division import Division, Even
from jaxdist.data.sampling import in_epochs, permutation, sampler

HELD_OUT = 0.2
"""The default fraction of held-out rows."""
SPLIT_SEED = 0
"""Seed of the split into training and held-out rows, the same for every run."""


class Examples(NamedTuple):
    """Inputs and their targets.

    Attributes:
        x: inputs [N, ...].
        y: targets [N]; integers for labels, floats for values.
        group: groups [N], 0 or 1; None if examples are not in groups.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None = None


def split(x: np.ndarray, y: np.ndarray, fraction: float) -> tuple[Examples, Examples]:
    """Training and held-out examples, in one fixed random order.

    Args:
        x: inputs [N, ...].
        y: targets [N].
        fraction: the fraction of examples that is held out.

    Raises:
        InputError: see `held_out_count`.

    >>> train, held = split(np.zeros((10, 3)), np.arange(10), 0.2)
    >>> train.x.shape, held.x.shape
    ((8, 3), (2, 3))
    """
    order = permutation(len(y), SPLIT_SEED)
    held = held_out_count(len(y), fraction, 'rows')
    return Examples(x[order[held:]], y[order[held:]]), Examples(x[order[:held]], y[order[:held]])


def grouped(
    train: Examples, held: Examples, feature: str, features: Sequence[str], short: Mapping[str, str] | None = None
) -> tuple[Examples, Examples, Facts]:
    """The examples with their groups, 1 where a feature is above a threshold and else 0, and facts about the groups.

    The threshold is the midpoint of the feature's two values if it has exactly two in training, else its median there.
    The feature stays among the inputs.

    Args:
        train: the training examples, x [N, features].
        held: the held-out examples, x [M, features].
        feature: the feature's name; '' returns the examples without groups.
        features: the names of all features, in the order of x.
        short: alternative names of features, and their names in `features`.

    Raises:
        InputError: there is no such feature, or one of the groups is empty, in training or held out.

    >>> some = Examples(np.array([[30.0], [40.0], [50.0]]), np.array([0, 1, 1]))
    >>> train, held, facts = grouped(some, some, 'age', ['age'])
    >>> train.group.tolist(), facts['group'], facts['group_1']
    ([0, 0, 1], 'age above 40', 1)
    """
    if not feature:
        return train, held, {}
    feature = _full(feature, features, short or {})
    at = list(features).index(feature)
    threshold = _threshold(train.x[:, at])
    facts: Facts = {'group': f'{feature} above {threshold:g}'}
    parts = []
    for part, prefix in ((train, 'group'), (held, 'held_out_group')):
        group = (part.x[:, at] > threshold).astype(np.int32)
        counts = np.bincount(group, minlength=2).tolist()
        if 0 in counts:
            kind = 'training' if part is train else 'held-out'
            raise InputError(
                f'{feature!r} does not divide the {len(group)} {kind} rows into two groups: it is above '
                f'{threshold:g} in {counts[1]} of them; choose another feature'
            )
        facts |= {f'{prefix}_0': counts[0], f'{prefix}_1': counts[1]}
        parts.append(part._replace(group=group))
    return parts[0], parts[1], facts


def _full(feature: str, features: Sequence[str], short: Mapping[str, str]) -> str:
    """The name in `features` of a feature that is given by its full or its short name."""
    known = [*short, *features]
    if feature not in known:
        close = ' or '.join(map(repr, nearest(feature, known)))
        hint = f': did you mean {close}?' if close else '.'
        raise InputError(f'there is no feature {feature!r}{hint} There are {", ".join(known)}')
    return short.get(feature, feature)


def _threshold(values: np.ndarray) -> float:
    """The threshold between two groups of values [N]."""
    kinds = np.unique(values)
    # Of two values the median is one of them, and with `>` a group could be empty.
    return float(kinds.mean() if len(kinds) == 2 else np.median(values))


def standardiser(x: np.ndarray, dims: tuple[int, ...] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The function that standardises inputs: shifts and scales them by the mean and deviation of `x`; float32.

    Args:
        x: the training inputs, whose mean and standard deviation are used.
        dims: the dims that these are taken over; None for all. Constant features are shifted only.

    >>> standardiser(np.array([0.0, 4.0]))(np.array([6.0]))
    array([2.], dtype=float32)
    """
    mean, deviation = x.mean(dims, dtype=np.float64), x.std(dims, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1.0)
    return lambda values: ((values - mean) / scale).astype(np.float32)


def divided(
    train: Examples,
    held: Examples,
    *,
    kind: Literal['classes', 'values'],
    classes: int,
    scale: Callable[[np.ndarray], np.ndarray],
    division: Division,
    facts: Facts,
) -> Data:
    """The data set: each worker draws from its part in epochs, without replacement.

    Where each worker has a separate part (all divisions but `Even`), training batches have `row` [B], the index of each
    example within its worker's part, so that per-example state, such as multipliers, can be stored with the worker.

    Args:
        train: the training examples.
        held: the held-out examples.
        kind: the kind of targets.
        classes: the number of labels; 1 for values.
        scale: from stored inputs to the model's inputs.
        division: how the training examples are divided among workers.
        facts: facts about the data other than sizes and digest.

    >>> from jaxdist.data.division import Even
    >>> few = Examples(np.array([[0.0], [2.0]]), np.array([0, 1]))
    >>> kind = {'kind': 'classes', 'classes': 2}
    >>> data = divided(few, few, **kind, scale=standardiser(few.x), division=Even(), facts={'name': 'few'})
    >>> sorted(data.batch(seed=0, step=0, size=2, workers=1)['x'].tolist())
    [[-1.0], [1.0]]
    """
    task = Task(kind, train.x.shape[1:], classes)
    labels = train.y if kind == 'classes' else None
    draw = sampler(lambda workers: division.parts(len(train.y), labels, workers), in_epochs)
    sizes = {'examples': len(train.y), 'held_out': len(held.y)}
    return Data(
        task,
        batches(draw, _fetch(train, kind, scale), numbered=not isinstance(division, Even)),
        in_order(len(held.y), _fetch(held, kind, scale)),
        {**facts, **sizes, 'sha256': digest(train.x, train.y, held.x, held.y)},
        constant_loss(task, train.y, held.y),
        'label histogram' if kind == 'classes' else 'mean value',
    )


def _fetch(examples: Examples, kind: str, scale: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Batch]:
    """The function from indices of examples to their batch."""
    dtype = np.int32 if kind == 'classes' else np.float32

    def fetch(rows: np.ndarray) -> Batch:
        fetched = {'x': scale(examples.x[rows]), 'y': examples.y[rows].astype(dtype)}
        return fetched if examples.group is None else {**fetched, 'group': examples.group[rows]}

    return fetch
