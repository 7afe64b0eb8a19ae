"""`jaxdist train`: trains an experiment, or goes on with a run."""

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax

from jaxdist import folder as folders
from jaxdist.cluster import Cluster
from jaxdist.commands import options
from jaxdist.commands.plan import show as show_plan
from jaxdist.commands.progress import Progress
from jaxdist.experiment import Experiment
from jaxdist.plan import plan
from jaxdist.run import run
from jaxdist.train import prepare


@dataclass(frozen=True)
class Train:
    """Trains an experiment and leaves a run folder behind."""

    experiment: options.ExperimentFields = field(default_factory=Experiment)
    set: options.Settings = ()
    """Change one keyword inside the update line, such as adamw.learning_rate=1e-3; may be given more than once."""
    run: Path | None = None
    """The run's folder; if it holds a run of this experiment, go on with that. By default a new one below runs/."""
    dry_run: bool = False
    """Show the plan and stop."""
    cluster: Cluster = field(default_factory=Cluster)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    path, rest = options.config_path(arguments, 'train')
    default = Train(options.load_config(path), run=path if path.is_dir() and path != Path() else None)
    about = f'Trains the experiment of {path}, with any field changed by an option.' if path.name else Train.__doc__ or ''
    chosen = options.parse(Train, default, rest, f'train {path.name or "CONFIG"}', about)
    experiment = options.settled(chosen.experiment, chosen.set)
    options.start(experiment, chosen.cluster)
    if chosen.dry_run:
        show_plan(plan(prepare(experiment)), experiment)
        return
    name = path.parent.name.rsplit('-', 1)[0] if path.name == 'experiment.json' else path.stem
    where = chosen.run or folders.new_folder(Path('runs'), name)
    again = f'{os.environ.get("JAXDIST_TRAIN", "jaxdist train")} {shlex.quote(str(where))}'
    with Progress(experiment, where, again) as progress, asked_to_stop() as stop:
        for event in run(experiment, where, command=options.typed(), stop=stop):
            progress.show(event)


@contextmanager
def asked_to_stop() -> Iterator['_Stop']:
    """The first Ctrl-C (or termination notice) asks for a clean end, the second ends at once."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """Remembers that somebody asked."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int, _: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if jax.process_index() == 0:
            os.write(2, b'\nstopping after this step, and saving (once more to leave at once)\n')

    def __call__(self) -> bool:
        return self.asked
