"""`jaxdist compare --on ...`: the runs of a comparison on many machines, and the lines that show them."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from jaxdist.cli import options
from jaxdist.cli.progress import Progress, end_if_stopped
from jaxdist.cli.stopping import asked_to_stop
from jaxdist.cli.sweep_task import run_task
from jaxdist.cluster.options import RayOptions
from jaxdist.cluster.ray_tasks import ray_tasks
from jaxdist.cluster.slurm_tasks import SlurmOptions, slurm_tasks
from jaxdist.cluster.tasks import Engine
from jaxdist.report import seconds_text
from jaxdist.training.checkpoint.locking import read_lock
from jaxdist.training.experiment import Experiment
from jaxdist.training.run_folder import read_records
from jaxdist.training.sweep import Change, sweep
from jaxdist.training.sweep_task import task_data

QUEUES = {'ray': 'on Ray', 'slurm': 'on SLURM (squeue shows why one waits)'}


@dataclass(frozen=True)
class Machines:
    """Where the runs of a comparison are trained."""

    on: Literal['here', 'ray', 'slurm'] = 'here'
    """Where runs are trained: one after the other here, or as tasks of a Ray cluster or jobs of SLURM."""
    retries: int = 3
    """How often a run is started again there, from its newest checkpoint, when its process is lost."""
    ray: RayOptions = field(default_factory=RayOptions)
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    def engine(self, folder: Path) -> AbstractContextManager[Engine]:
        """What starts runs on machines; it may write in the folder, which they share."""
        if self.on == 'slurm':
            return slurm_tasks(run_task, self.slurm, folder)
        return ray_tasks(run_task, self.ray)


class Failure(NamedTuple):
    """A run that failed: its label, and the exit code."""

    label: str
    code: int


def run_elsewhere(
    machines: Machines, missing: Sequence[tuple[str, Experiment, Path]], folder: Path, cache: str
) -> list[Failure]:
    """Trains the missing runs of a comparison on machines, with a line for each change; returns those that failed.

    Ends the program if it was asked to stop.
    """
    jax.config.update('jax_platforms', 'cpu')  # this process only waits, and reserves no memory of accelerators
    tasks, labels = {}, {}
    for name, experiment, path in missing:
        more = {'command': options.command_line(), 'compilation_cache': cache}
        tasks[path] = task_data(name, experiment, path, **more)
        labels[path] = f'{name}, seed {experiment.seed}'
    board = Board(labels)
    # The engine first: Ray forks, which a process whose JAX has started must not, and handles signals.
    with machines.engine(folder) as engine, asked_to_stop() as stop, Progress(stop) as progress:
        for path in tasks:
            path.mkdir(parents=True, exist_ok=True)
        progress.print_line(f'runs queued {QUEUES[machines.on]}: {len(tasks)}')
        for change in sweep(tasks, engine, machines.retries, stop):
            progress.print_line(board.line(change))
        end_if_stopped(stop, progress)
    return board.failures


class Board:
    """The lines of a sweep.

    Args:
        labels: those of the runs, by their folders.
    """

    def __init__(self, labels: dict[Path, str]) -> None:
        self.labels, self.failures = labels, list[Failure]()
        self.training, self.ended = set[Path](), set[Path]()

    def line(self, change: Change) -> str:
        """A change in words, and what is still to come."""
        self.training.discard(change.run)
        if change.kind == 'started':
            self.training.add(change.run)
        elif change.kind != 'again':
            self.ended.add(change.run)
        if change.kind == 'failed':
            self.failures.append(Failure(self.labels[change.run], change.code))
        waiting = len(self.labels) - len(self.training) - len(self.ended)
        counts = f'{len(self.ended)} of {len(self.labels)} ended, {len(self.training)} training, {waiting} waiting'
        return f'{self.labels[change.run]}: {words(change)}  ({counts})'


def words(change: Change) -> str:
    """A change in words, with what the run's folder says."""
    records = read_records(change.run)
    step = records[-1]['step'] if records else 0
    match change.kind:
        case 'started':
            return f'started from step {step}, {(read_lock(change.run).splitlines() or [""])[0]}'
        case 'again':
            return f'lost at step {step}, and started again: {change.text}'
        case 'done':
            row = json.loads((change.run / 'result.json').read_text())
            return f'held-out loss {row["held_out"]:.4f} after {seconds_text(row["seconds"])}'
        case 'stopped':
            return f'stopped at step {step}'
        case _:
            return f'{change.kind}: {change.text}'
