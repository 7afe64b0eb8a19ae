"""Goodput: the share of a run's time, over all its starts, that is spent in steps which count."""

import json
import time
from pathlib import Path
from typing import NamedTuple

from jaxdist.cluster.phases import PHASES
from jaxdist.core import files

FILE = 'starts.json'
PRODUCTIVE, REDONE = 'step', 'redone'


class Goodput(NamedTuple):
    """What became of a run's time.

    Attributes:
        share: the share that was spent in steps that count.
        wall: seconds from the run's first start to now.
        starts: how often it was started.
        seconds: seconds by what they were spent on: `step`, the other phases (see `jaxdist.cluster.Limits`), `redone`
            for steps after the last checkpoint of a start that was killed, or that were taken back, and `down` between
            two starts.
    """

    share: float
    wall: float
    starts: int
    seconds: dict[str, float]

    @property
    def words(self) -> str:
        """One line, with the largest losses first."""
        lost = sorted(((s, name) for name, s in self.seconds.items() if name != PRODUCTIVE), reverse=True)
        each = ', '.join(f'{name} {seconds:.1f} s' for seconds, name in lost if seconds >= 0.05)
        times = f'{self.starts} start' + 's' * (self.starts > 1)
        return f'goodput {self.share:.0%} of {self.wall:.1f} s in {times}; the rest: {each or "nothing"}'


class Start(NamedTuple):
    """What one start of a run has left.

    Attributes:
        began: when it began, as all times by `time.time()`.
        at: when it last saved.
        seen: when it last wrote a record.
        first: the step that it went on from.
        saved: the step that it last saved.
        seconds: seconds of its phases until then.
    """

    began: float
    at: float
    seen: float
    first: int
    saved: int
    seconds: dict[str, float]


class Account:
    """Accounts for the time of a run from here on, in a file of its folder."""

    def __init__(self) -> None:
        PHASES.enter('start', 0)
        self.before, self.began = dict(PHASES.seconds), time.time()
        self.path: Path | None = None
        self.starts: list[Start] = []
        self.counted: dict[int, float] = {}
        self.lost = 0.0

    def resume(self, folder: Path, step: int, seen: float | None, writes: bool) -> None:
        """Reads what earlier starts have left.

        Args:
            folder: the run's folder, which must exist.
            step: the step that the run goes on from.
            seen: when it last wrote a record; None for a new run.
            writes: whether this process writes the file.
        """
        self.path = folder / FILE if writes else None
        self.starts = _read(folder / FILE)
        if self.starts:
            self.starts[-1] = _without_lost_steps(self.starts[-1], step, seen)
        self.starts.append(Start(self.began, self.began, self.began, step, step, {}))

    def saved(self, step: int) -> None:
        """Called when a step is saved: what was spent until now counts."""
        spent = {**PHASES.seconds, PHASES.here.phase: PHASES.total(PHASES.here.phase)}
        since = {name: s - self.before.get(name, 0.0) for name, s in spent.items()}
        self.counted[step] = since.get(PRODUCTIVE, 0.0) - self.lost
        since |= {PRODUCTIVE: self.counted[step], REDONE: self.lost}
        seconds = {name: round(s, 3) for name, s in since.items()}
        now = time.time()
        self.starts[-1] = self.starts[-1]._replace(at=now, seen=now, saved=step, seconds=seconds)
        if self.path is not None:
            files.replace(self.path, json.dumps([start._asdict() for start in self.starts], indent=1) + '\n')

    def rewound(self, step: int) -> None:
        """Called when the run goes back to a checkpoint: the steps since do not count."""
        spent = PHASES.total(PRODUCTIVE) - self.before.get(PRODUCTIVE, 0.0)
        self.lost = spent - self.counted.get(step, 0.0)

    def goodput(self) -> Goodput:
        """What became of the run's time until the last save."""
        return goodput(self.starts)


def goodput(starts: list[Start]) -> Goodput:
    """What became of a run's time, from what each of its starts has left.

    >>> first = Start(0.0, at=50.0, seen=60.0, first=0, saved=40, seconds={'step': 40.0, 'compile': 10.0})
    >>> second = Start(75.0, at=100.0, seen=100.0, first=40, saved=60, seconds={'step': 20.0, 'compile': 5.0})
    >>> goodput([first, second]).words
    'goodput 60% of 100.0 s in 2 starts; the rest: down 15.0 s, compile 15.0 s, redone 10.0 s'
    """
    seconds: dict[str, float] = {}
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        spent = {**start.seconds, REDONE: start.seconds.get(REDONE, 0.0) + start.seen - start.at}
        if after is not None:
            spent['down'] = max(after.began - start.seen, 0.0)
        for name, s in spent.items():
            seconds[name] = seconds.get(name, 0.0) + s
    wall = starts[-1].at - starts[0].began
    return Goodput(seconds.get(PRODUCTIVE, 0.0) / wall if wall > 0 else 0.0, wall, len(starts), seconds)


def _read(path: Path) -> list[Start]:
    """The starts in a file; none if it is missing, or damaged: it is a record alone, on which no number depends."""
    try:
        return [_start(**each) for each in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _start(began: float, at: float, seen: float, first: int, saved: int, seconds: dict[str, float]) -> Start:
    each = {str(name): float(s) for name, s in seconds.items()}
    return Start(float(began), float(at), float(seen), int(first), int(saved), each)


def _without_lost_steps(last: Start, step: int, seen: float | None) -> Start:
    """Counts as redone what a start has done beyond the step that the run goes on from."""
    last = last._replace(seen=max(seen or 0.0, last.at))
    if step >= last.saved:
        return last
    # Its newest checkpoint was damaged.
    lost = last.seconds.get(PRODUCTIVE, 0.0) * min((last.saved - step) / max(last.saved - last.first, 1), 1.0)
    kept = {**last.seconds, PRODUCTIVE: last.seconds.get(PRODUCTIVE, 0.0) - lost}
    return last._replace(at=last.at - lost, saved=step, seconds=kept)
