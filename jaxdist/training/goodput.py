"""Goodput: the share of a run's time, over all its starts, that is spent in steps which count."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist.cluster.phases import PHASES

FILE = 'starts.json'
PRODUCTIVE = 'step'


class Goodput(NamedTuple):
    """What became of a run's time.

    Attributes:
        share: the share that was spent in steps that count.
        wall: seconds from the run's first start to now.
        starts: how often it was started.
        seconds: seconds by what they were spent on: `step`, the other phases (see `jaxdist.cluster.Limits`), `redone`
            for steps after the last checkpoint of a start that was killed, and `down` between two starts.
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


class Account:
    """Accounts for the time of a run, in a file of its folder.

    Args:
        folder: the run's folder, which must exist.
        step: the step that the run goes on from.
        seen: `time.time()` at which the run last wrote a record; None for a new run.
        writes: whether this process writes the file.
    """

    def __init__(self, folder: Path, step: int, seen: float | None, writes: bool) -> None:
        self.path, self.writes = folder / FILE, writes
        self.before = dict(PHASES.seconds)
        self.starts = _read(self.path)
        if self.starts:
            _take_back(self.starts[-1], step, seen)
        now = time.time()
        self.starts.append({'began': now, 'at': now, 'seen': now, 'first': step, 'saved': step, 'seconds': {}})

    def saved(self, step: int) -> None:
        """Called when a step is saved: what was spent until now counts."""
        here = self.starts[-1]
        spent = {**PHASES.seconds, PHASES.here.phase: PHASES.total(PHASES.here.phase)}
        here['seconds'] = {name: round(s - self.before.get(name, 0.0), 3) for name, s in spent.items()}
        here['at'] = here['seen'] = time.time()
        here['saved'] = step
        if self.writes:
            new = self.path.with_name(f'{FILE}.new')
            new.write_text(json.dumps(self.starts, indent=1) + '\n')
            new.replace(self.path)

    def goodput(self) -> Goodput:
        """What became of the run's time until the last save."""
        return goodput(self.starts)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        starts: list[dict[str, Any]] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # of a file that a full disk has damaged nothing is known
        return []
    return starts


def _take_back(last: dict[str, Any], step: int, seen: float | None) -> None:
    """Counts as redone what the last start has done beyond the step that the run goes on from."""
    last['seen'] = max(seen or 0.0, last['at'])
    if step < last['saved']:  # its newest checkpoint was damaged
        kept = max(step - last['first'], 0) / (last['saved'] - last['first'])
        lost = last['seconds'].get(PRODUCTIVE, 0.0) * (1 - kept)
        last['seconds'][PRODUCTIVE] = last['seconds'].get(PRODUCTIVE, 0.0) - lost
        last['at'] -= lost


def goodput(starts: list[dict[str, Any]]) -> Goodput:
    """What became of a run's time, from what each of its starts has left.

    Args:
        starts: for each when it `began`, `at` when it last saved, when it was last `seen`, all `time.time()`, and the
            `seconds` of its phases until it last saved.

    >>> first = {'began': 0.0, 'at': 50.0, 'seen': 60.0, 'seconds': {'step': 40.0, 'compile': 10.0}}
    >>> second = {'began': 75.0, 'at': 100.0, 'seen': 100.0, 'seconds': {'step': 20.0, 'compile': 5.0}}
    >>> goodput([first, second]).words
    'goodput 60% of 100.0 s in 2 starts; the rest: down 15.0 s, compile 15.0 s, redone 10.0 s'
    """
    seconds: dict[str, float] = {}
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        spent = {**start['seconds'], 'redone': start['seen'] - start['at']}
        if after is not None:
            spent['down'] = max(after['began'] - start['seen'], 0.0)
        for name, s in spent.items():
            seconds[name] = seconds.get(name, 0.0) + s
    wall = starts[-1]['at'] - starts[0]['began']
    return Goodput(seconds.get(PRODUCTIVE, 0.0) / wall if wall > 0 else 0.0, wall, len(starts), seconds)
