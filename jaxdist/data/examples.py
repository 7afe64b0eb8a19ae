"""A data set of inputs and targets in memory, divided among workers."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from jaxdist.data.dataset import Data, batches, constant_loss, digest, in_order
from jaxdist.data.division import Division
from jaxdist.data.sampling import in_epochs, sampler
from jaxdist.task import Batch, Task


class Examples(NamedTuple):
    """Inputs and their targets.

    Attributes:
        x: [N, ...].
        y: [N]; integers for labels, floats for values.
    """

    x: np.ndarray
    y: np.ndarray


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
    facts: dict[str, str | int | float],
) -> Data:
    """The data set: training in epochs without replacement, each worker within its own part.

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
        batches(draw, _fetch(train, kind, scale)),
        in_order(len(held.y), _fetch(held, kind, scale)),
        {**facts, **sizes, 'sha256': digest(*train, *held)},
        constant_loss(task, train.y, held.y),
        'label histogram' if kind == 'classes' else 'mean value',
    )


def _fetch(examples: Examples, kind: str, scale: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Batch]:
    """Rows to the batch that they make."""
    dtype = np.int32 if kind == 'classes' else np.float32
    return lambda rows: {'x': scale(examples.x[rows]), 'y': examples.y[rows].astype(dtype)}
