"""Runs on many machines: which are started, started again, or given up. Knows no engine, and trains nothing itself."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from jaxdist.cluster.tasks import Engine, Outcome
from jaxdist.training.run_folder import read_facts

SECONDS = 0.5
"""Between two looks at the tasks."""
VISIBLE_SECONDS = 60.0
"""How long a network file system may take to show here what was written elsewhere."""

Run = TypeVar('Run', bound=Hashable)


class Change(NamedTuple):
    """What happens to a run.

    Attributes:
        run: the folder of the run.
        kind: `started`, in a process that may be the first of the run or a later one; `again`, for it was lost and
            waits for another start; or how it ended, as in `Outcome`.
        text: the reason.
        code: the exit code, of a run that failed.
    """

    run: Path
    kind: str
    text: str = ''
    code: int = 0


class Schedule(Generic[Run]):
    """Which runs wait, and which of them are started again.

    Args:
        runs: the runs, in order.
        retries: how often one is started again.
    """

    def __init__(self, runs: list[Run], retries: int) -> None:
        self.waiting, self.retries, self.lost = list(runs), retries, Counter[Run]()

    def take(self) -> list[Run]:
        """The runs that are started now."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def end(self, run: Run, outcome: Outcome, *, stop: bool = False) -> tuple[str, str, int]:
        """What becomes of a run whose task has ended: the kind, the reason and the exit code of a `Change`.

        Args:
            run: the run.
            outcome: how the task ended.
            stop: whether all are asked to stop.
        """
        if outcome.kind not in ('lost', 'stopped'):
            return outcome.kind, outcome.text, outcome.code
        if stop:
            return 'stopped', outcome.text, 0
        reason = outcome.text or 'it was asked to stop'  # by its machine, as when it is preempted
        self.lost[run] += 1
        if self.lost[run] > self.retries:
            return 'failed', f'lost {self.lost[run]} times, and given up: {reason}', 1
        self.waiting.append(run)
        return 'again', reason, 0


def sweep(
    runs: Mapping[Path, dict[str, Any]], engine: Engine, retries: int, stop: Callable[[], bool] = lambda: False
) -> Iterator[Change]:
    """Has an engine train runs, and yields what happens to them, as their folders and the engine show it.

    Args:
        runs: the tasks' data by the runs' folders, which must exist.
        engine: starts the tasks.
        retries: how often a run is started again that was lost, or stopped by its machine.
        stop: True has all tasks save and end.

    >>> list(sweep({}, engine=None, retries=3))
    []
    """
    schedule, tasks, starts = Schedule(list(runs), retries), dict[Path, Any](), {run: _starts(run) for run in runs}
    stopped = False
    while schedule.waiting or tasks:
        if stop() and not stopped:
            stopped = True
            schedule.take()
            engine.stop(list(tasks.values()))
        if waiting := schedule.take():
            tasks |= zip(waiting, engine.start([runs[run] for run in waiting]), strict=True)
        for run, handle in list(tasks.items()):
            if (now := _starts(run)) > starts[run]:
                starts[run] = now
                yield Change(run, 'started')
            if (outcome := engine.outcome(handle)) is not None:
                del tasks[run]
                yield Change(run, *schedule.end(run, _with_result(run, outcome), stop=stopped))
        if tasks:
            time.sleep(SECONDS)


def _starts(run: Path) -> int:
    return len(read_facts(run).get('commands', []))


def _with_result(run: Path, outcome: Outcome) -> Outcome:
    """The outcome, once the run's result can be read here."""
    end = time.monotonic() + VISIBLE_SECONDS
    while outcome.kind in ('done', 'diverged') and not (run / 'result.json').exists():
        if time.monotonic() > end:
            return Outcome('failed', f'it ended, but {run} has no result here: machines of a sweep must share it', 1)
        time.sleep(SECONDS)
    return outcome
