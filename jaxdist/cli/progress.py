"""The output of `train` and `compare` while they run: a live line in a terminal, plain lines elsewhere."""

import math
import os
import signal
import sys
import time
from types import TracebackType
from typing import Any, Self

import jax
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from jaxdist.cli.options import command_line
from jaxdist.cli.stopping import Stop
from jaxdist.cli.terminal import Terminal
from jaxdist.core.mesh import axis_text
from jaxdist.report import ARROWS, bytes_text, seconds_text
from jaxdist.training.experiment import Mesh
from jaxdist.training.run import Event, Ready

BAR = 12
"""Columns that are reserved for the progress bar."""


class Screen(Terminal):
    """Standard output of process 0; after a broken pipe it is quiet, and the run is asked to stop and save."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(quiet=jax.process_index() != 0)
        self.stop = stop

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        self.quiet, self.stop.number = True, signal.SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Prints the events of one run after the other.

    Args:
        stop: is asked to stop the run after a broken pipe.
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

    def print_line(self, text: str) -> None:
        """Prints a line that is not empty, above the live one if there is one."""
        if text:
            self.console.print(escape(text))

    def show(self, event: Event, label: str) -> None:
        """Prints an event of the run with this label."""
        match event:
            case Event('ready', ready):
                self._begin(ready, label)
            case Event('trained', record):
                self._trained(record)
            case Event('held_out', record):
                self._held_out(record)
            case Event('rewound', record):
                self._rewound(record['step'], record['rewind'])
            case Event('saved', step):
                self.speed.rest(step)
            case Event('diverged', reason):
                self.print_line(f'diverged: {reason}')

    def _begin(self, ready: Ready, label: str) -> None:
        experiment, data = ready.training.experiment, ready.training.data
        self.ready, self.speed = ready, Speed()
        for path, reason in ready.damaged:
            self.print_line(f'a damaged checkpoint was set aside as {path}: {reason}')
        cost = 'a data-dependent number of bytes' if ready.sent is None else bytes_text(float(ready.sent))
        self.print_line(label if experiment.update in label else f'{label}: {experiment.update}')
        device = ' device' if len(experiment.mesh.axes) > 1 else ''
        sends = 'would send' if experiment.mesh.simulate else 'sends'
        whom = ' to other workers' if device else ''
        self.print_line(f'{mesh_text(experiment.mesh)}; each{device} {sends} {cost} a step{whom}')
        self.print_line(f'data: {facts_text(data.facts)}')
        if ready.step:
            self.print_line(f'resuming from step {ready.step}')
        if ready.resized:
            self._resized(*ready.resized)
        for name in ready.changed_code:
            self.print_line(f'{name} has changed since the run began; its former text is kept in the folder code')
        if self.console.is_interactive:
            self.bar.start()
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task('compiling', total=experiment.steps, completed=ready.step)

    def _resized(self, count: int, averaged: list[str], split: list[str]) -> None:
        if averaged:
            self.print_line(f'per-worker state of {count} workers ({averaged[0]}, ...) becomes its mean on each worker')
        if split:
            self.print_line(f'sharded state of {count} workers ({split[0]}, ...) is split again over the workers')

    def _trained(self, record: dict[str, Any]) -> None:
        self.speed.reached(record['step'])
        parts = self._parts(record)
        if self.task is None:
            self.print_line('  '.join(parts))
            return
        while len(parts) > 2 and len('  '.join(parts)) > self.console.width - BAR:
            parts.pop()
        self.bar.update(self.task, completed=record['step'], description=escape('  '.join(parts)))

    def _rewound(self, step: int, facts: dict[str, Any]) -> None:
        self.speed = Speed()
        first, end = facts['batches'][-1]
        self.print_line(
            f'the loss has a spike at step {facts["step"]}: {facts["loss"]:.4f}, median {facts["median"]:.4f}; back to '
            f'step {step}, and batches {first} to {end - 1} are skipped'
        )
        if self.task is not None:
            self.bar.update(self.task, completed=step)

    def _parts(self, record: dict[str, Any]) -> list[str]:
        """A record as texts, the most important first."""
        assert self.ready is not None
        training, step, rate = self.ready.training, record['step'], self.speed.rate
        parts = [f'step {step}/{training.experiment.steps}', f'loss {record["loss"]:.4f}']
        for name, shown in record.get('constraints', {}).items():
            parts.append(f'{name} {constraint_text(shown)}')
        if record['skipped']:
            parts.append(f'skipped by {record["skipped"]:.0%} of workers')
        if 'not_finite' in record:
            parts.append(f'not finite on {", ".join(map(str, record["not_finite"][:4]))}')
        if 'straggler' in record:
            parts.append(straggler_text(**record['straggler']))
        if rate:
            size, unit = training.experiment.batch, 'examples'
            if training.data.task.kind == 'tokens':
                size, unit = size * training.data.task.shape[0], 'tokens'
            parts.append(f'{rate * size:,.0f} {unit}/s')
        if self.ready.sent is not None:
            parts.append(f'{bytes_text(record["sent"])} sent')
        if 'simulated_seconds' in record:
            parts.append(f'{seconds_text(record["simulated_seconds"])} simulated')
        if rate and step < training.experiment.steps:
            parts.insert(2, f'{time_text((training.experiment.steps - step) * self.speed.pace)} left')
        return parts

    def _held_out(self, record: dict[str, Any]) -> None:
        assert self.ready is not None
        data, metrics = self.ready.training.data, self.ready.training.model.metrics
        better = {'loss': 'lower', **{name: metric.better for name, metric in metrics.items()}}
        scores = '  '.join(
            f'{name} {value:.4f}{ARROWS.get(better.get(name, ""), "")}'
            for name, value in sorted(record['held_out'].items())
        )
        self.print_line(f'step {record["step"]}  held-out: {scores}  ({data.baseline_name}: {data.baseline:.4f})')
        if 'judged' in record:
            judged = record['judged']
            each = '  '.join(
                f'{n} {v:+.4f} (held-out {judged["held_out"][n]:+.4f})' for n, v in judged['training'].items()
            )
            all_hold = 'hold' if judged['holds'] else 'do not all hold'
            self.print_line(f'step {record["step"]}  constraints {all_hold}: {each}')
        self.speed.rest(record['step'])


class Speed:
    """The speed of training from the first record on, which excludes compilation.

    Attributes:
        rate: steps per second, a moving average without the time for evaluating and saving; 0 while it is unknown.
        pace: seconds per step, with that time.
    """

    def __init__(self) -> None:
        self.rate = self.pace = 0.0
        self.first: tuple[int, float] | None = None
        self.last = (0, 0.0)

    def reached(self, step: int) -> None:
        """Updates the speed when a step is recorded."""
        now = time.monotonic()
        if self.first is None:
            self.first = (step, now)
        else:
            rate = (step - self.last[0]) / max(now - self.last[1], 1e-9)
            self.rate = 0.7 * self.rate + 0.3 * rate if self.rate else rate
            self.pace = (now - self.first[1]) / (step - self.first[0])
        self.last = (step, now)

    def rest(self, step: int) -> None:
        """Restarts the clock after evaluating or saving at a step, whose time does not count for the rate."""
        self.last = (step, time.monotonic())


def end_if_stopped(stop: Stop, progress: Progress) -> None:
    """Ends the program, with the command that resumes it, if it was asked to stop.

    >>> from jaxdist.cli.stopping import asked_to_stop
    >>> with asked_to_stop() as stop, Progress(stop) as progress:
    ...     end_if_stopped(stop, progress)
    """
    if stop():
        progress.print_line(f'stopped; all steps so far are saved. Resume with:\n  {command_line()}')
        sys.exit(stop.code)


def straggler_text(process: int, cause: str, seconds: float, median: float) -> str:
    """A straggler, for a progress line.

    >>> straggler_text(1, 'data', 0.06, 0.011)
    'process 1 is slow: data 60 ms, median 11 ms'
    """
    return f'process {process} is slow: {cause} {1000 * seconds:.2g} ms, median {1000 * median:.2g} ms'


def constraint_text(shown: dict[str, float]) -> str:
    """A constraint's value and its multiplier, for a progress line.

    >>> constraint_text({'value': 0.25, 'violation': 0.25, 'multiplier': 1.5})
    '+0.2500 x 1.5'
    """
    multiplier = shown.get('multiplier')
    value = f'{shown["value"]:+.4f}' if math.isfinite(shown['value']) else 'unknown'
    return value if multiplier is None else f'{value} x {multiplier:.4g}'


def time_text(seconds: float) -> str:
    """The time left: whole seconds, since a forecast is no more exact.

    >>> time_text(0.2), time_text(41.7), time_text(125)
    ('1 s', '42 s', '2 min 05 s')
    """
    return f'{max(seconds, 1):.0f} s' if seconds < 59.5 else seconds_text(seconds)


def facts_text(facts: dict[str, Any]) -> str:
    """Facts about a data set on one line, with the first digits of its digest.

    >>> facts_text({'name': 'digits', 'examples': 1438, 'sha256': 'ec4c12433ac219d7c018'})
    'name digits, examples 1,438, sha256 ec4c12433ac2'
    """
    short = {**facts, 'sha256': facts['sha256'][:12]} if 'sha256' in facts else facts
    return ', '.join(
        f'{name} {value:,}' if isinstance(value, int) else f'{name} {value}' for name, value in short.items()
    )


def mesh_text(mesh: Mesh) -> str:
    """A mesh in words.

    >>> mesh_text(Mesh(workers=4, model=2, emulate=True))
    '4 workers x 2 model on 8 emulated devices'
    """
    shape = axis_text(mesh.axes)
    if mesh.simulate:
        return f'{shape}, simulated on one device'
    return f'{shape} on {mesh.devices} {"emulated " if mesh.emulate else ""}devices'
