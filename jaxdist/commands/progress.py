"""What `train` and `compare` show while they run: a live line in a terminal, plain lines elsewhere."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from jaxdist.experiment import Experiment, Mesh
from jaxdist.report import bytes_text, seconds_text
from jaxdist.run import Event, Ready


class Progress:
    """Shows the events of one run; process 0 alone prints.

    Args:
        experiment: what is trained.
        folder: where the run lies.
        again: the command that goes on with it.
        label: what to call it, where there are several.
    """

    def __init__(self, experiment: Experiment, folder: Path, again: str, label: str = '') -> None:
        self.experiment, self.folder, self.again, self.label = experiment, folder, again, label
        self.console = Console(quiet=jax.process_index() != 0, highlight=False, soft_wrap=True)
        self.bar = Bar(TextColumn('{task.description}'), BarColumn(bar_width=20), console=self.console, transient=True)
        self.task: TaskID | None = None
        self.per_step, self.unit = experiment.batch, 'examples'
        self.baseline = ('', 0.0)
        self.sent: float | None = None
        self.last: dict[str, Any] = {}
        self.clock, self.begun = time.monotonic(), 0
        self.rate = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def show(self, event: Event) -> None:
        """Prints what happened."""
        getattr(self, f'_{event.kind}')(event.value)

    def say(self, text: str) -> None:
        """Prints a line, above the live one if there is one."""
        self.console.print(escape(text))

    def _ready(self, ready: Ready) -> None:
        data, experiment = ready.training.data, self.experiment
        self.baseline, self.sent, self.begun = (data.baseline_name, data.baseline), ready.sent, ready.step
        if data.task.kind == 'tokens':
            self.per_step, self.unit = experiment.batch * data.task.shape[0], 'tokens'
        for path, why in ready.damaged:
            self.say(f'a damaged checkpoint was set aside as {path}: {why}')
        self.say(f'{self.label or self.folder}: {experiment.update}')
        cost = 'bytes that depend on the data' if ready.sent is None else bytes_text(ready.sent)
        facts = ', '.join(f'{name} {value}' for name, value in data.facts.items())
        self.say(f'{mesh_text(experiment.mesh)}; each sends {cost} a step; data: {facts}')
        if ready.step:
            self.say(f'going on from step {ready.step}')
        self.task = self.bar.add_task('compiling', total=experiment.steps, completed=ready.step)

    def _trained(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        steps = record['step'] - self.last.get('step', self.begun)
        if self.last:  # the first record's time is the compiler's
            rate = steps / max(now - self.clock, 1e-9)
            self.rate = 0.7 * self.rate + 0.3 * rate if self.rate else rate
        self.clock, self.last = now, record
        skipped = f'  skipped by {record["skipped"]:.0%} of workers' if record['skipped'] else ''
        speed = f'  {self.rate * self.per_step:,.0f} {self.unit}/s' if self.rate else ''
        sent = '' if self.sent is None else f'  {bytes_text(record["sent"])} sent'
        left = f'  {seconds_text((self.experiment.steps - record["step"]) / self.rate)} left' if self.rate else ''
        text = f'step {record["step"]}/{self.experiment.steps}  loss {record["loss"]:.4f}{skipped}{speed}{sent}{left}'
        if self.console.is_terminal and self.task is not None:
            self.bar.update(self.task, completed=record['step'], description=escape(text))
        else:
            self.say(text)

    def _held_out(self, record: dict[str, Any]) -> None:
        scores = '  '.join(f'{name} {value:.4f}' for name, value in record['held_out'].items())
        name, value = self.baseline
        self.say(f'step {record["step"]}  held out: {scores}  ({name}: {value:.4f})')
        self.clock = time.monotonic()

    def _saved(self, step: int) -> None:
        """Nothing to say: what matters is said at the end."""

    def _diverged(self, why: str) -> None:
        self.say(f'diverged: {why}')

    def _stopped(self, step: int) -> None:
        self.say(f'stopped; step {step} is saved. Go on with:\n  {self.again}')

    def _done(self, record: dict[str, Any]) -> None:
        took = seconds_text(record.get('seconds', 0.0))
        self.say(f'done in {took}; in {self.folder}: metrics.jsonl, loss.png, checkpoints. Train on with:')
        self.say(f'  {self.again} --steps {2 * self.experiment.steps}')


def mesh_text(mesh: Mesh) -> str:
    """The devices in words.

    >>> mesh_text(Mesh(workers=4, model=2, emulate=True))
    '4 workers x 2 model on 8 emulated devices'
    """
    shape = f'{mesh.workers} workers' + (f' x {mesh.model} model' if mesh.model > 1 else '')
    if mesh.simulate:
        return f'{shape}, simulated on one device'
    return f'{shape} on {mesh.workers * mesh.model} {"emulated " if mesh.emulate else ""}devices'
