"""A target value of a held-out metric, and the simulated seconds in which a run reaches it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxdist.core.errors import InputError
from jaxdist.report.fields import Record, evaluations


class Target(NamedTuple):
    """A value that a held-out metric has to reach.

    Attributes:
        metric: the metric's name.
        value: its value.
    """

    metric: str
    value: float

    @property
    def text(self) -> str:
        """The target in words, as `loss 1.8`."""
        return f'{self.metric} {self.value:g}'


def read_target(text: str) -> Target:
    """The target that a text such as `loss=1.8` names.

    Raises:
        InputError: the text is none.

    >>> read_target('loss=1.8').text
    'loss 1.8'
    """
    name, _, value = text.partition('=')
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise InputError(f'{text!r} is no target: write a metric and its value, as in loss=1.8')
    return Target(name, number)


def seconds_to(target: Target, records: Sequence[Record], better: Mapping[str, str]) -> float | None:
    """The simulated seconds at the first evaluation that reaches the target; None if none does.

    Args:
        target: the target.
        records: a run's records.
        better: which values of each metric are better, `lower` or `higher`.

    Raises:
        InputError: the run has no such metric, it is not known which values are better, or it had no clock.

    >>> records = [{'step': t, 'loss': 2 / t, 'simulated_seconds': 0.5 * t} for t in (1, 2)]
    >>> records += [{'step': t, 'held_out': {'loss': 2 / t}} for t in (1, 2)]
    >>> seconds_to(Target('loss', 1.0), records, {'loss': 'lower'})
    1.0
    """
    sign = {'lower': 1, 'higher': -1}.get(better.get(target.metric, ''))
    if sign is None:
        raise InputError(f'there is no target {target.text!r}: the metrics are {", ".join(better)}')
    series = evaluations(records, target.metric)
    if series.simulated is None:
        raise InputError(f'the time to {target.text} is simulated: give a clock, as in --clock.compute')
    reached = sign * series.loss <= sign * target.value
    return float(series.simulated[reached.argmax()]) if reached.any() else None
