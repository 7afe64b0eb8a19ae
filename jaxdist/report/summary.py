"""Summaries of the variants of a comparison: means over seeds, paired differences, costs.

Intervals are Student's t at 95 %. Variants have the same data and initial weights at a seed, so differences are paired
by seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.report.fields import number

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean with its 95 % interval.

    Attributes:
        mean: the mean of `n` values.
        half: half the width of the 95 % interval; None for a single value.
        n: the number of values.
    """

    mean: float
    half: float | None
    n: int

    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False for a single value."""
        return self.half is not None and abs(self.mean) > self.half


class Summary(NamedTuple):
    """One variant over its seeds. Means and medians leave diverged runs out, unless every run diverged.

    Attributes:
        name: the variant's short label.
        update: the variant's update line in full.
        runs: the number of runs, diverged ones included.
        diverged: the number of runs that ended with a loss that is not finite.
        held_out: the held-out loss; None if every run diverged.
        accuracy: the held-out accuracy, between 0 and 1; None if it is not measured.
        difference: the held-out loss minus that of the baseline, the first variant, at the same seed; None for the
            baseline.
        sent: median bytes that a worker sent in the whole run.
        memory: median bytes in memory per device.
        seconds: median time of a run.
        violation: the largest violation of a constraint; None without constraints.
    """

    name: str
    update: str
    runs: int
    diverged: int
    held_out: Interval | None
    accuracy: Interval | None
    difference: Interval | None
    sent: float
    memory: float
    seconds: float
    violation: Interval | None = None


class _Run(NamedTuple):
    name: str
    held_out: float
    accuracy: float | None
    sent: float
    memory: float
    seconds: float
    violation: float | None


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its 95 % Student-t interval.

    Raises:
        InputError: if there are no values.

    >>> mean, half, n = interval([1.0, 3.0])
    >>> mean, round(half, 3), n
    (2.0, 12.706, 2)
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    n = len(values)
    if n == 0:
        raise InputError('no values: a mean needs one or more')
    half = None if n == 1 else float(stdtrit(n - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(float(np.mean(values)), half, n)


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """One `Summary` for each `update` among `rows`, in the order of first appearance; the first is the baseline.

    Args:
        rows: one dict per run: `name`, `update`, `seed`, `held_out` (the final loss; NaN, infinity or None if the run
            diverged), `sent` and `memory` (bytes), `seconds`, and if known `accuracy` (0 to 1) and `violation` (of
            constraints).

    Raises:
        InputError: for no rows, a missing key, a value of the wrong kind, a seed that occurs twice in a variant, or
            names that are not unique.

    >>> row = {
    ...     'name': 'exact',
    ...     'update': 'mean()',
    ...     'seed': 0,
    ...     'held_out': 2.0,
    ...     'sent': 8,
    ...     'memory': 9,
    ...     'seconds': 1,
    ... }
    >>> [summary.held_out.mean for summary in summarise([row, row | {'seed': 1, 'held_out': 3.0}])]
    [2.5]
    """
    lines = _lines(rows)
    first = next(iter(lines.values()))
    return [_summary(update, runs, None if runs is first else first) for update, runs in lines.items()]


def best(summaries: Sequence[Summary]) -> int | None:
    """The index of the lowest mean loss, if its difference to the baseline excludes 0 and none of its runs diverged.

    The baseline, the first summary, is never the best.

    >>> worse, better = Interval(2.0, 0.1, 3), Interval(-0.5, 0.1, 3)
    >>> first = Summary('a', 'a()', 3, 0, worse, None, None, 8, 8, 1.0)
    >>> best([first, first._replace(held_out=Interval(1.5, 0.1, 3), difference=better)])
    1
    """
    means = {i: s.held_out.mean for i, s in enumerate(summaries) if s.held_out is not None}
    if not means:
        return None
    lowest = min(means, key=means.__getitem__)
    summary = summaries[lowest]
    significant = summary.difference is not None and summary.difference.excludes_zero()
    return lowest if significant and not summary.diverged else None


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, _Run]]:
    if not rows:
        raise InputError('no rows: nothing was run, so there is nothing to compare')
    lines: dict[str, dict[int, _Run]] = {}
    names: dict[str, str] = {}
    for index, row in enumerate(rows):
        where = f'rows[{index}]'
        name, update, seed = (
            _text(row, 'name', where),
            _text(row, 'update', where),
            number(row, 'seed', where),
        )
        names.setdefault(update, name)
        if names[update] != name or list(names.values()).count(name) > 1:
            raise InputError(f'{where}: each variant needs one unique name, but {name!r} is for {update!r}: {names}')
        if seed in lines.setdefault(update, {}):
            raise InputError(f'{where}: seed {seed:g} of the variant {update!r} occurs twice')
        lines[update][int(seed)] = _run(row, name, where)
    return lines


def _run(row: Mapping[str, Any], name: str, where: str) -> _Run:
    held_out = number(row, 'held_out', where, finite=False)
    accuracy = number(row, 'accuracy', where, finite=False) if 'accuracy' in row else None
    costs = [number(row, key, where) for key in ('sent', 'memory', 'seconds')]
    if min(costs) < 0:
        raise InputError(f'{where}: bytes and seconds cannot be negative: {dict(row)}')
    if accuracy is not None and not 0 <= accuracy <= 1 and not math.isnan(held_out):
        raise InputError(f"{where}: 'accuracy' should be between 0 and 1, not {accuracy}")
    violation = number(row, 'violation', where, finite=False) if 'violation' in row else None
    return _Run(name, held_out, accuracy, costs[0], costs[1], costs[2], violation)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip() or '\n' in value:
        raise InputError(f'{where}: {key!r} should be one line of text, not {value!r}')
    return value


def _summary(update: str, runs: dict[int, _Run], first: dict[int, _Run] | None) -> Summary:
    ended = [run for run in runs.values() if not math.isnan(run.held_out)]
    costs = [(run.sent, run.memory, run.seconds) for run in ended or runs.values()]
    sent, memory, seconds = (float(cost) for cost in np.median(costs, axis=0))
    accuracies = [run.accuracy for run in ended if run.accuracy is not None]
    if len(accuracies) not in (0, len(ended)):
        raise InputError(f'only {len(accuracies)} of {len(ended)} runs of {update!r} have an accuracy: all or none')
    violations = [run.violation for run in ended if run.violation is not None]
    pairs = _differences(runs, first or {})
    return Summary(
        next(iter(runs.values())).name,
        update,
        len(runs),
        len(runs) - len(ended),
        interval([run.held_out for run in ended]) if ended else None,
        interval(accuracies) if accuracies else None,
        interval(pairs) if pairs else None,
        sent,
        memory,
        seconds,
        interval(violations) if violations else None,
    )


def _differences(runs: dict[int, _Run], first: dict[int, _Run]) -> list[float]:
    pairs = [runs[seed].held_out - first[seed].held_out for seed in runs if seed in first]
    return [pair for pair in pairs if not math.isnan(pair)]
