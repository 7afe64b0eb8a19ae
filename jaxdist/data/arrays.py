"""A data set of arrays in memory."""

from typing import Any, Literal

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.data.dataset import Data, Facts
from jaxdist.data.division import Division, Even
from jaxdist.data.examples import HELD_OUT, Examples, divided, split, standardiser


def from_arrays(
    x: Any,
    y: Any,
    *,
    held_out: float | tuple[Any, Any] = HELD_OUT,
    kind: Literal['classes', 'values'] | None = None,
    standardise: bool = False,
    division: Division = Even(),
    name: str = 'arrays',
) -> Data:
    """The data set of inputs and targets, for the method `load()` of a data set of your own.

    Args:
        x: inputs [N, ...], real numbers.
        y: targets [N]: labels from 0 on, or real values.
        held_out: the fraction of examples that is held out, in one fixed random order; or the held-out `(x, y)`.
        kind: `classes` or `values`; by default `classes` for integers and bools, else `values`.
        standardise: whether inputs are shifted and scaled, each entry by its mean and deviation over the training
            examples.
        division: how the training examples are divided among workers.
        name: the name of the data set, in its facts.

    Raises:
        InputError: the arrays do not fit each other, have no examples, or numbers that are not finite; labels are
            negative or no whole numbers.

    >>> data = from_arrays(np.arange(20.0).reshape(10, 2), np.arange(10) % 3)
    >>> data.task, data.facts['examples'], data.facts['held_out']
    (Task(kind='classes', shape=(2,), classes=3), 8, 2)
    """
    train = _examples(x, y, 'x, y')
    if isinstance(held_out, tuple):
        held = _examples(*held_out, 'held_out')
        if held.x.shape[1:] != train.x.shape[1:]:
            raise InputError(f'held_out has inputs of shape {held.x.shape[1:]}, and training {train.x.shape[1:]}')
        facts: Facts = {'name': name}
    else:
        train, held = split(train.x, train.y, held_out)
        facts = {'name': name, 'split': f'{held_out:g} held out, in a fixed order'}
    chosen = kind or ('values' if np.issubdtype(train.y.dtype, np.floating) else 'classes')
    classes = _classes(train.y, held.y) if chosen == 'classes' else 1
    scale = standardiser(train.x, dims=(0,)) if standardise else _as_float
    return divided(train, held, kind=chosen, classes=classes, scale=scale, division=division, facts=facts)


def _examples(x: Any, y: Any, where: str) -> Examples:
    inputs, targets = np.asarray(x), np.asarray(y)
    for name, array in (('x', inputs), ('y', targets)):
        if array.dtype.kind not in 'biuf':
            raise InputError(f'{name} of {where} is {array.dtype}, and must be real numbers')
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise InputError(f'{name} of {where} has {int((~np.isfinite(array)).sum())} numbers that are not finite')
    if inputs.ndim < 2 or targets.ndim != 1 or len(inputs) != len(targets) or not len(targets):
        raise InputError(
            f'{where} must be inputs [N, ...] and targets [N] with 1 example or more; their shapes are {inputs.shape} '
            f'and {targets.shape}'
        )
    return Examples(inputs, targets)


def _classes(*targets: np.ndarray) -> int:
    every = np.concatenate(targets)
    if every.min() < 0 or (every != np.round(every)).any():
        raise InputError(f'labels are whole numbers from 0 on; there are {every.min():g} to {every.max():g}')
    return int(every.max()) + 1


def _as_float(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)
