"""What `train` and `compare` show while they run: a live line in a terminal, plain lines elsewhere."""

import math
import os
import signal
import sys
import time
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from jaxdist.cli.stopping import Stop
from jaxdist.core.mesh import axis_text
from jaxdist.report import bytes_text, seconds_text
from jaxdist.training.experiment import Mesh
from jaxdist.training.run import Event, Ready

BAR = 12
"""Columns that are kept for the bar itself."""


class Screen(Console):
    """Standard output of process 0; when nobody reads it any more, it falls silent and asks to stop in order."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(quiet=jax.process_index() != 0, highlight=False, soft_wrap=True)
        self.stop = stop

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        self.quiet, self.stop.number = True, signal.SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Shows the events of one run after the other.

    Args:
        stop: what to tell when nobody reads it.
    """

    def __init__(self, stop: Stop) -> None:
        self.console = Screen(stop)
        text = TextColumn('{task.description}', table_column=Column(no_wrap=True))
        self.bar = Bar(text, BarColumn(bar_width=None), console=self.console, transient=True, expand=True)
        self.task: TaskID | None = None
        self.ready: Ready | None = None
        self.speed = Speed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.task is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the live one if there is one."""
        self.console.print(escape(text))

    def show(self, event: Event, label: str) -> None:
        """Prints what happened in the run with this label."""
        match event:
            case Event('ready', ready):
                self._begin(ready, label)
            case Event('trained', record):
                self._trained(record)
            case Event('held_out', record):
                self._held_out(record)
            case Event('saved', step):
                self.speed.rest(step)
            case Event('diverged', why):
                self.say(f'diverged: {why}')

    def _begin(self, ready: Ready, label: str) -> None:
        experiment, data = ready.training.experiment, ready.training.data
        self.ready, self.speed = ready, Speed()
        for path, why in ready.damaged:
            self.say(f'a damaged checkpoint was set aside as {path}: {why}')
        cost = 'bytes that depend on the data' if ready.sent is None else bytes_text(float(ready.sent))
        self.say(label if experiment.update in label else f'{label}: {experiment.update}')
        sends = 'would send' if experiment.mesh.simulate else 'sends'
        self.say(f'{mesh_text(experiment.mesh)}; each {sends} {cost} a step')
        self.say(f'data: {facts_text(data.facts)}')
        if ready.step:
            self.say(f'going on from step {ready.step}')
        if ready.resized:
            self._resized(*ready.resized)
        if self.console.is_interactive:
            self.bar.start()
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task('compiling', total=experiment.steps, completed=ready.step)

    def _resized(self, count: int, averaged: list[str], cut: list[str]) -> None:
        if averaged:
            self.say(f'what each of {count} workers had of its own ({averaged[0]}, ...) is now the mean of it, on each')
        if cut:
            self.say(
                f'what each of {count} workers had a part of ({cut[0]}, ...) is cut anew, and nothing in it changed'
            )

    def _trained(self, record: dict[str, Any]) -> None:
        self.speed.reached(record['step'])
        parts = self._parts(record)
        if self.task is None:
            self.say('  '.join(parts))
            return
        while len(parts) > 2 and len('  '.join(parts)) > self.console.width - BAR:
            parts.pop()
        self.bar.update(self.task, completed=record['step'], description=escape('  '.join(parts)))

    def _parts(self, record: dict[str, Any]) -> list[str]:
        """What a record says, the most important first."""
        assert self.ready is not None
        training, step, rate = self.ready.training, record['step'], self.speed.rate
        parts = [f'step {step}/{training.experiment.steps}', f'loss {record["loss"]:.4f}']
        for name, shown in record.get('constraints', {}).items():
            parts.append(f'{name} {constraint_text(shown)}')
        if record['skipped']:
            parts.append(f'skipped by {record["skipped"]:.0%} of workers')
        if rate:
            size, unit = training.experiment.batch, 'examples'
            if training.data.task.kind == 'tokens':
                size, unit = size * training.data.task.shape[0], 'tokens'
            parts.append(f'{rate * size:,.0f} {unit}/s')
        if self.ready.sent is not None:
            parts.append(f'{bytes_text(record["sent"])} sent')
        if rate and step < training.experiment.steps:
            parts.insert(2, f'{time_text((training.experiment.steps - step) * self.speed.pace)} left')
        return parts

    def _held_out(self, record: dict[str, Any]) -> None:
        assert self.ready is not None
        data = self.ready.training.data
        scores = '  '.join(f'{name} {value:.4f}' for name, value in sorted(record['held_out'].items()))
        self.say(f'step {record["step"]}  held out: {scores}  ({data.baseline_name}: {data.baseline:.4f})')
        if 'judged' in record:
            judged = record['judged']
            each = '  '.join(
                f'{n} {v:+.4f} (held out {judged["held_out"][n]:+.4f})' for n, v in judged['training'].items()
            )
            self.say(f'step {record["step"]}  constraints {"hold" if judged["holds"] else "do not all hold"}: {each}')
        self.speed.rest(record['step'])


class Speed:
    """How fast training goes, from the first record on: the time before is the compiler's.

    Attributes:
        rate: steps a second lately, without the time for evaluating and saving; 0 while it is not known.
        pace: seconds a step, all in all.
    """

    def __init__(self) -> None:
        self.rate = self.pace = 0.0
        self.first: tuple[int, float] | None = None
        self.last = (0, 0.0)

    def reached(self, step: int) -> None:
        """A step was recorded."""
        now = time.monotonic()
        if self.first is None:
            self.first = (step, now)
        else:
            rate = (step - self.last[0]) / max(now - self.last[1], 1e-9)
            self.rate = 0.7 * self.rate + 0.3 * rate if self.rate else rate
            self.pace = (now - self.first[1]) / (step - self.first[0])
        self.last = (step, now)

    def rest(self, step: int) -> None:
        """Something else than training was done at a step, and has ended just now."""
        self.last = (step, time.monotonic())


def constraint_text(shown: dict[str, float]) -> str:
    """A constraint's value and its multiplier, as a progress line has them.

    >>> constraint_text({'value': 0.25, 'violation': 0.25, 'multiplier': 1.5})
    '+0.2500 x 1.5'
    """
    multiplier = shown.get('multiplier')
    value = f'{shown["value"]:+.4f}' if math.isfinite(shown['value']) else 'unknown'
    return value if multiplier is None else f'{value} x {multiplier:.4g}'


def time_text(seconds: float) -> str:
    """A forecast: whole seconds, and no more digits than it is worth.

    >>> time_text(0.2), time_text(41.7), time_text(125)
    ('1 s', '42 s', '2 min 05 s')
    """
    return f'{max(seconds, 1):.0f} s' if seconds < 59.5 else seconds_text(seconds)


def facts_text(facts: dict[str, Any]) -> str:
    """What is known of a data set on one line, of a digest the beginning.

    >>> facts_text({'name': 'digits', 'examples': 1438, 'sha256': 'ec4c12433ac219d7c018'})
    'name digits, examples 1,438, sha256 ec4c12433ac2'
    """
    short = {**facts, 'sha256': facts['sha256'][:12]} if 'sha256' in facts else facts
    return ', '.join(
        f'{name} {value:,}' if isinstance(value, int) else f'{name} {value}' for name, value in short.items()
    )


def mesh_text(mesh: Mesh) -> str:
    """The devices in words.

    >>> mesh_text(Mesh(workers=4, model=2, emulate=True))
    '4 workers x 2 model on 8 emulated devices'
    """
    shape = axis_text(mesh.axes)
    if mesh.simulate:
        return f'{shape}, simulated on one device'
    return f'{shape} on {mesh.devices} {"emulated " if mesh.emulate else ""}devices'
