"""Reads numbers from plain dicts, with errors that name the place; and a run's records as series."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from jaxdist.core.errors import InputError

Record = Mapping[str, Any]
"""One line of a run's metrics: `{'step', 'loss', 'sent', ...}`, or `{'step', 'held_out': {'loss', ...}}`."""

COSTS = {'sent': 'sent', 'simulated_seconds': 'simulated'}
"""What a run has spent up to a record: its name there, and in a `Series`."""


class Series(NamedTuple):
    """Losses, or another metric's values, in the order of their steps.

    Attributes:
        step: steps [N], increasing.
        loss: losses [N], NaN where the loss was not finite.
        sent: bytes sent per worker up to each step [N], or None if they are not recorded.
        simulated: simulated seconds up to each step [N], or None if they are not recorded.
    """

    step: np.ndarray
    loss: np.ndarray
    sent: np.ndarray | None
    simulated: np.ndarray | None = None


def number(record: Record, key: str, where: str, *, finite: bool = True) -> float:
    """The number `record[key]`.

    Args:
        record: the record.
        key: the key.
        where: the record's place, for the error message.
        finite: whether the number must be finite; if not, None, NaN and infinity are returned as NaN.

    Raises:
        InputError: if the key is missing, its value is not a number, or it must be finite and is not.

    >>> number({'loss': 2.5}, 'loss', 'records[0]')
    2.5
    """
    if key not in record:
        raise InputError(f'{where} lacks {key!r}; it has: {", ".join(map(str, record)) or "nothing"}')
    value = record[key]
    if value is None and not finite:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f'{where}: {key!r} should be a number, not {value!r}')
    if math.isfinite(value):
        return float(value)
    if finite:
        raise InputError(f'{where}: {key!r} should be finite, not {value}')
    return math.nan


def training(records: Sequence[Record]) -> Series:
    """The training losses among a run's records.

    Of several records of a step, as after resuming from an earlier checkpoint, the last counts.

    Raises:
        InputError: if there are no records, or a record is neither of training nor of an evaluation.

    >>> training([{'step': 1, 'loss': 3.0, 'sent': 40}, {'step': 1, 'held_out': {'loss': 2.9}}]).sent
    array([40.])
    """
    points = {}
    for where, record in _checked(records):
        if 'loss' in record:
            loss = number(record, 'loss', where, finite=False)
            points[number(record, 'step', where)] = (loss, *_costs(record, where))
    return _series(points)


def evaluations(records: Sequence[Record], metric: str = 'loss') -> Series:
    """The held-out losses among a run's records, or values of another metric.

    Bytes and simulated seconds are interpolated from training records where they are missing.

    Raises:
        InputError: as `training`, or if an evaluation lacks the metric.

    >>> evaluations([{'step': 2, 'loss': 3.0, 'sent': 40}, {'step': 1, 'held_out': {'loss': 2.9}}]).sent
    array([20.])
    """
    points = {}
    for where, record in _checked(records):
        if 'held_out' in record:
            loss = number(record['held_out'], metric, f"{where}['held_out']", finite=False)
            points[number(record, 'step', where)] = (loss, *_costs(record, where))
    series, train = _series(points), training(records)
    interpolated = {
        name: np.interp(series.step, np.append(0, train.step), np.append(0, known))
        for name in COSTS.values()
        if getattr(series, name) is None and (known := getattr(train, name)) is not None
    }
    return series._replace(**interpolated)


def _costs(record: Record, where: str) -> tuple[float, ...]:
    """The costs of a record, NaN where it has none."""
    return tuple(number(record, key, where) if key in record else math.nan for key in COSTS)


def _checked(records: Sequence[Record]) -> list[tuple[str, Record]]:
    if not records:
        raise InputError('no records: there is nothing to plot before a run has logged a step')
    for index, record in enumerate(records):
        number(record, 'step', f'records[{index}]')
        if not {'loss', 'held_out', 'rewind'} & set(record):
            raise InputError(f"records[{index}] has neither 'loss' nor 'held_out'; it has: {', '.join(record)}")
    return [(f'records[{index}]', record) for index, record in enumerate(records)]


def _series(points: dict[float, tuple[float, ...]]) -> Series:
    """The series of points, by step (loss, costs)."""
    steps = sorted(points)
    loss, *costs = np.array([points[step] for step in steps]).T if steps else np.empty((1 + len(COSTS), 0))
    known: dict[str, np.ndarray | None] = {}
    for (key, name), cost in zip(COSTS.items(), costs, strict=True):
        known[name] = None if not steps or np.isnan(cost).any() else cost
        if known[name] is not None and (falls := np.flatnonzero(np.diff(cost) < 0)).size:
            raise InputError(f'{key!r} must be cumulative, but falls after step {steps[falls[0]]:g}')
    return Series(np.array(steps), loss, **known)
