"""A data set of inputs and targets in memory, in two groups perhaps, divided among workers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.registry import nearest
from jaxdist.core.types import Batch, Task
from jaxdist.data.dataset import Data, Facts, batches, constant_loss, digest, held_out_count, in_order
from jaxdist.data.division import Division, Even
from jaxdist.data.sampling import in_epochs, permutation, sampler

HELD_OUT = 0.2
SPLIT_SEED = 0
"""The split into training and held-out rows is the same for every run."""


class Examples(NamedTuple):
    """Inputs and their targets.

    Attributes:
        x: [N, ...].
        y: [N]; integers for labels, floats for values.
        group: [N], 0 or 1; None if examples do not fall into groups.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None = None


def split(x: np.ndarray, y: np.ndarray, fraction: float) -> tuple[Examples, Examples]:
    """Training and held-out examples, in one fixed random order.

    Args:
        x: [N, ...].
        y: [N].
        fraction: how much of them is held out.

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
    """The examples with a group each, 1 where a feature is above a line and else 0, and what to say of it.

    The line is the midpoint of the feature's two values if it has just two in training, else its median there. The
    feature stays among the inputs.

    Args:
        train: what is learnt from; x [N, features].
        held: what is held out; x [M, features].
        feature: the name of one; '' is none, and leaves all as it is.
        features: the names of all, in the order of x.
        short: other names of some, to those in `features`.

    Raises:
        InputError: there is no such feature, or one of the two groups is empty, in training or held out.

    >>> some = Examples(np.array([[30.0], [40.0], [50.0]]), np.array([0, 1, 1]))
    >>> train, held, facts = grouped(some, some, 'age', ['age'])
    >>> train.group.tolist(), facts['group'], facts['group_1']
    ([0, 0, 1], 'age above 40', 1)
    """
    if not feature:
        return train, held, {}
    feature = _full(feature, features, short or {})
    at = list(features).index(feature)
    line = _line(train.x[:, at])
    facts: Facts = {'group': f'{feature} above {line:g}'}
    told = []
    for part, prefix in ((train, 'group'), (held, 'held_out_group')):
        group = (part.x[:, at] > line).astype(np.int32)
        counts = np.bincount(group, minlength=2).tolist()
        if 0 in counts:
            where = 'training' if part is train else 'held-out'
            raise InputError(
                f'{feature!r} makes no two groups of the {len(group)} {where} rows: it is above {line:g} in '
                f'{counts[1]} of them; choose another feature'
            )
        facts |= {f'{prefix}_0': counts[0], f'{prefix}_1': counts[1]}
        told.append(part._replace(group=group))
    return told[0], told[1], facts


def _full(feature: str, features: Sequence[str], short: Mapping[str, str]) -> str:
    """The name of a feature as it is among `features`."""
    known = [*short, *features]
    if feature not in known:
        close = ' or '.join(map(repr, nearest(feature, known)))
        hint = f': did you mean {close}?' if close else '.'
        raise InputError(f'there is no feature {feature!r}{hint} There are {", ".join(known)}')
    return short.get(feature, feature)


def _line(values: np.ndarray) -> float:
    """Where values [N] are cut in two."""
    kinds = np.unique(values)
    return float(kinds.mean() if len(kinds) == 2 else np.median(values))


def standardiser(x: np.ndarray, dims: tuple[int, ...] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Shifts and scales inputs as `x` needs to have mean 0 and deviation 1; float32.

    Args:
        x: the training inputs, from which mean and deviation are taken.
        dims: those that are averaged over; None is all of them. What does not vary is shifted only.

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
    """The data set: training in epochs without replacement, each worker within its own part.

    Where workers have parts of their own (all divisions but `Even`), training batches say in `row` [B] which examples
    of its worker's part the rows are, so that what belongs to single examples can live with the worker.

    Args:
        train: what is learnt from.
        held: what is held out.
        kind: what is predicted.
        classes: the number of labels; 1 for values.
        scale: makes of inputs as they are stored what the model sees.
        division: how the training examples are divided among workers.
        facts: what to say of the data beside sizes and digest.

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
    """Rows to the batch that they make."""
    dtype = np.int32 if kind == 'classes' else np.float32

    def fetch(rows: np.ndarray) -> Batch:
        fetched = {'x': scale(examples.x[rows]), 'y': examples.y[rows].astype(dtype)}
        return fetched if examples.group is None else {**fetched, 'group': examples.group[rows]}

    return fetch
