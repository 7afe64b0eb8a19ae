"""Which process makes a step take longer than it has to, and why: data, compute or communication.

All processes take their steps together, so each has the same time per step. What sets them apart is measured by each
alone: the seconds that it reads its data, the seconds of a small computation on one of its devices, and the seconds
until process 0 answers.
"""

import statistics
from collections.abc import Mapping
from typing import NamedTuple

SHARE = 0.2
"""The share of a step by which a process's data take longer than the median, at which it is a straggler."""
FACTOR = 1.5
"""The factor above the median of its small computation, or of an answer, at which it is one."""
LEAST = 0.005
"""Seconds: shorter differences of an answer are those of any network."""


class Cost(NamedTuple):
    """What a process measures between two records.

    Attributes:
        data: seconds a step in which it reads data.
        step: seconds a step.
        compute: seconds of a small computation on one of its devices.
        answer: seconds until process 0 answers.
    """

    data: float
    step: float
    compute: float
    answer: float


class Straggler(NamedTuple):
    """A process that is slower than the others.

    Attributes:
        process: its index.
        cause: `data`, `compute` or `communication`.
        seconds: what it takes.
        median: what the processes take, as their median.
    """

    process: int
    cause: str
    seconds: float
    median: float


def straggler(costs: Mapping[int, Cost]) -> Straggler | None:
    """The process that holds up the others the most; None if none stands out.

    >>> even = Cost(data=0.01, step=0.10, compute=0.002, answer=0.001)
    >>> straggler({0: even, 1: even, 2: even._replace(data=0.06)})
    Straggler(process=2, cause='data', seconds=0.06, median=0.01)
    """
    if len(costs) < 2 or not all(cost.step > 0 for cost in costs.values()):
        return None
    step = statistics.median(cost.step for cost in costs.values())
    found: list[tuple[float, Straggler]] = []
    for cause, field, bound in (
        ('data', 'data', lambda median: median + SHARE * step),
        ('compute', 'compute', lambda median: FACTOR * median),
        ('communication', 'answer', lambda median: max(FACTOR * median, median + LEAST)),
    ):
        values = {k: float(getattr(cost, field)) for k, cost in costs.items()}
        # With two processes the median lies between them: the smaller one is what can be had.
        median = statistics.median_low(values.values())
        slowest = max(values, key=lambda k: values[k])
        above = values[slowest] / bound(median) if bound(median) > 0 else 0.0
        found.append((above, Straggler(slowest, cause, values[slowest], median)))
    # Of several causes the one that is furthest above its bound: a small one would hide it.
    above, worst = max(found)
    return worst if above > 1 else None
