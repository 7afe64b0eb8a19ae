"""What this process is doing, for the watchdog and for the report of stragglers."""

import time
from typing import NamedTuple


class Here(NamedTuple):
    """Where a process is.

    Attributes:
        phase: a field of `Limits`, or `end`.
        step: the step that it takes, or has taken.
        since: `time.monotonic()` at which the phase began.
    """

    phase: str
    step: int
    since: float


class Phases:
    """The present phase of this process, and the seconds that it has spent in each."""

    def __init__(self) -> None:
        self.here = Here('start', 0, time.monotonic())
        self.seconds: dict[str, float] = {}

    def enter(self, phase: str, step: int) -> None:
        """Begins a phase."""
        self.seconds[self.here.phase] = self.total(self.here.phase)
        self.here = Here(phase, step, time.monotonic())

    def total(self, phase: str) -> float:
        """The seconds of a phase, with the present one's until now."""
        present = time.monotonic() - self.here.since if phase == self.here.phase else 0.0
        return self.seconds.get(phase, 0.0) + present


PHASES = Phases()
"""Those of this process: a process takes part in one run at a time."""


def doing(phase: str, step: int) -> None:
    """Notes that this process begins a phase of a step.

    >>> doing('data', 3)
    >>> PHASES.here[:2]
    ('data', 3)
    """
    PHASES.enter(phase, step)
