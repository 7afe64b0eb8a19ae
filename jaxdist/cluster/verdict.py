"""Which process holds up a run, and why: decided by process 0 from what all report."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from jaxdist.cluster.exits import PEER, STUCK
from jaxdist.cluster.options import Limits

TOGETHER = ('step', 'compile', 'save', 'restore', 'evaluate')
"""Phases in which a process waits for the others."""


class Report(NamedTuple):
    """What process 0 knows of a process.

    Attributes:
        phase: its phase.
        step: its step.
        seconds: how long it has been in this phase.
        silent: how long it has not reported.
    """

    phase: str
    step: int
    seconds: float
    silent: float


class Verdict(NamedTuple):
    """Why a run ends.

    Attributes:
        code: the exit code.
        words: the reason, with the process that caused it.
        culprits: the processes that caused it.
    """

    code: int
    words: str
    culprits: list[int]


def judge(reports: Mapping[int, Report], limits: Limits, silence: float) -> Verdict | None:
    """Who has been silent or in one phase for too long; None if nobody has.

    Processes wait for the one that is furthest behind, so of several that exceed their limits that one is named, and
    where one is behind and within its limit, the others are given its time.

    Args:
        reports: what each process last reported.
        limits: seconds by phase.
        silence: seconds that a process may be silent.

    >>> reports = {0: Report('step', 9, 30.0, 0.1), 1: Report('data', 9, 31.0, 0.4)}
    >>> judge(reports, Limits(data=20.0, step=20.0), 10.0).words
    "process 1 has been in 'data' of step 9 for 31 s; the limit is 20 s (--cluster.limits.data)"
    """
    silent = sorted(k for k, report in reports.items() if report.silent > silence)
    if silent:
        each = '; '.join(
            f'process {k} has not answered for {reports[k].silent:.0f} s: it was in {_where(reports[k])}'
            for k in silent
        )
        return Verdict(PEER, each, silent)
    limit_of = dataclasses.asdict(limits)
    bounded = {k: report for k, report in reports.items() if report.phase in limit_of}
    if not bounded:
        return None
    last = min(report.step for report in bounded.values())
    behind = {k: report for k, report in bounded.items() if report.step == last}
    # A process that waits in a collective is not the one that is waited for, unless all wait.
    alone = {k: report for k, report in behind.items() if report.phase not in TOGETHER} or {
        k: report for k, report in behind.items() if report.phase != 'step'
    }
    suspects = alone or behind
    late = sorted(k for k, report in suspects.items() if report.seconds > limit_of[report.phase])
    if not late:
        return None
    each = '; '.join(
        f'process {k} has been in {_where(reports[k])} for {reports[k].seconds:.0f} s; the limit is '
        f'{limit_of[reports[k].phase]:g} s (--cluster.limits.{reports[k].phase})'
        for k in late
    )
    if len(late) == len(reports) > 1:
        where = reports[late[0]]
        each = (
            f'all {len(late)} processes have been in {_where(where)} for {where.seconds:.0f} s; the limit is '
            f'{limit_of[where.phase]:g} s (--cluster.limits.{where.phase}): a collective that does not end'
        )
    return Verdict(STUCK, each, late)


def _where(report: Report) -> str:
    return f'{report.phase!r} of step {report.step}' if report.step else repr(report.phase)
