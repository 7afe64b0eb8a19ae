"""Summaries of the variants of a comparison: means over seeds, paired differences, costs.

Intervals are Student's t at 95 %. Variants have the same data and initial weights at a seed, so differences are paired
by seed.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
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


class Score(NamedTuple):
    """A held-out metric of one variant at the end of its runs.

    Attributes:
        values: the value of each run that did not diverge, by seed; without those that are not finite.
        better: which values are better, `lower` or `higher`; '' if not known.
    """

    values: Mapping[int, float]
    better: str = 'lower'

    @property
    def interval(self) -> Interval:
        """The mean over seeds."""
        return interval(list(self.values.values()))

    def minus(self, other: 'Score') -> Interval:
        """The mean difference to another variant, paired by seed; without a common seed that of the means.

        >>> Score({0: 2.0, 1: 3.0}).minus(Score({0: 1.5, 1: 2.5}))
        Interval(mean=0.5, half=0.0, n=2)
        """
        pairs = [x - other.values[seed] for seed, x in self.values.items() if seed in other.values]
        return interval(pairs or [self.interval.mean - other.interval.mean])


class Summary(NamedTuple):
    """One variant over its seeds. Means and medians leave diverged runs out, unless every run diverged.

    Attributes:
        name: the variant's short label.
        update: the variant's update line in full.
        runs: the number of runs, diverged ones included.
        diverged: the number of runs that ended with a loss that is not finite.
        metrics: the held-out metrics by name, of which the first is `loss`; empty if every run diverged.
        difference: the held-out loss minus that of the baseline, the first variant, at the same seed; None for the
            baseline.
        sent: median bytes that a worker sent in the whole run.
        memory: median bytes in memory per device.
        seconds: median time of a run.
        violation: the largest violation of a constraint; None without constraints.
        simulated: median simulated time of a run; None without a clock.
        reached: for each target in words the simulated seconds of the runs that reach it, by seed.
    """

    name: str
    update: str
    runs: int
    diverged: int
    metrics: Mapping[str, Score]
    difference: Interval | None
    sent: float
    memory: float
    seconds: float
    violation: Interval | None = None
    simulated: float | None = None
    reached: Mapping[str, Mapping[int, float]] = MappingProxyType({})

    def of(self, metric: str) -> Interval | None:
        """A metric's mean over seeds; None if every run diverged, or it was not measured."""
        return self.metrics[metric].interval if metric in self.metrics else None

    @property
    def held_out(self) -> Interval | None:
        """The held-out loss; None if every run diverged."""
        return self.of('loss')


class _Run(NamedTuple):
    name: str
    metrics: Mapping[str, float]
    better: Mapping[str, str]
    sent: float
    memory: float
    seconds: float
    violation: float | None
    simulated: float | None
    reached: Mapping[str, float | None]

    @property
    def diverged(self) -> bool:
        return math.isnan(self.metrics['loss'])


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
            diverged), `sent` and `memory` (bytes), `seconds`, and if known `metrics` (values by name), `better` (which
            of a metric's values are better: `lower` or `higher`), `violation` (of constraints), `simulated` (seconds)
            and `reached` (for each target in words the simulated seconds to it, or None).

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

    >>> first = Summary('a', 'a()', 3, 0, {'loss': Score({0: 2.0})}, None, 8, 8, 1.0)
    >>> best([first, first._replace(metrics={'loss': Score({0: 1.5})}, difference=Interval(-0.5, 0.1, 3))])
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
    loss = number(row, 'held_out', where, finite=False)
    others = row.get('metrics') or {}
    metrics = {name: number(others, name, f"{where}['metrics']", finite=False) for name in others}
    costs = [number(row, key, where) for key in ('sent', 'memory', 'seconds')]
    if min(costs) < 0:
        raise InputError(f'{where}: bytes and seconds cannot be negative: {dict(row)}')
    if not 0 <= metrics.get('accuracy', 0) <= 1:
        raise InputError(f"{where}: 'accuracy' should be between 0 and 1, not {metrics['accuracy']}")
    violation = number(row, 'violation', where, finite=False) if 'violation' in row else None
    simulated = number(row, 'simulated', where) if 'simulated' in row else None
    better = {'loss': 'lower', **(row.get('better') or {})}
    reached = row.get('reached') or {}
    return _Run(name, {'loss': loss, **metrics}, better, costs[0], costs[1], costs[2], violation, simulated, reached)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip() or '\n' in value:
        raise InputError(f'{where}: {key!r} should be one line of text, not {value!r}')
    return value


def _summary(update: str, runs: dict[int, _Run], first: dict[int, _Run] | None) -> Summary:
    ended = {seed: run for seed, run in runs.items() if not run.diverged}
    costs = [(run.sent, run.memory, run.seconds) for run in (ended or runs).values()]
    sent, memory, seconds = (float(cost) for cost in np.median(costs, axis=0))
    violations = [run.violation for run in ended.values() if run.violation is not None]
    simulated = [run.simulated for run in (ended or runs).values() if run.simulated is not None]
    targets = {target: None for run in runs.values() for target in run.reached}
    scores = _scores(update, ended)
    baseline = {seed: run.metrics['loss'] for seed, run in (first or {}).items() if not run.diverged}
    paired = ended.keys() & baseline.keys()
    return Summary(
        next(iter(runs.values())).name,
        update,
        len(runs),
        len(runs) - len(ended),
        scores,
        scores['loss'].minus(Score(baseline)) if paired else None,
        sent,
        memory,
        seconds,
        interval(violations) if violations else None,
        float(np.median(simulated)) if simulated else None,
        {
            target: {seed: s for seed, run in ended.items() if (s := run.reached.get(target)) is not None}
            for target in targets
        },
    )


def _scores(update: str, ended: dict[int, _Run]) -> dict[str, Score]:
    """The metrics of the runs that did not diverge."""
    scores: dict[str, Score] = {}
    for name in dict.fromkeys(name for run in ended.values() for name in run.metrics):
        values = {seed: run.metrics[name] for seed, run in ended.items() if name in run.metrics}
        if len(values) < len(ended):
            raise InputError(
                f'only {len(values)} of {len(ended)} runs of {update!r} have the metric {name}: all or none'
            )
        if known := {seed: value for seed, value in values.items() if not math.isnan(value)}:
            scores[name] = Score(known, next(iter(ended.values())).better.get(name, ''))
    return scores
