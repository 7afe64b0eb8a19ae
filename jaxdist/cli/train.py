"""`jaxdist train`: trains an experiment, or goes on with a run."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jaxdist.cli import options
from jaxdist.cli.plan import show as show_plan
from jaxdist.cli.progress import Progress
from jaxdist.cli.stopping import asked_to_stop
from jaxdist.cluster.processes import Cluster
from jaxdist.report import seconds_text
from jaxdist.training.experiment import Experiment
from jaxdist.training.plan import plan
from jaxdist.training.run import Done, run
from jaxdist.training.run_folder import new_folder
from jaxdist.training.train import prepare


@dataclass(frozen=True)
class Train:
    """Trains an experiment and leaves a run folder behind.

    The config is a Python file, a run's folder (to go on with that run) or an experiment.json (to repeat it); every
    field can be changed by an option.
    """

    experiment: options.ExperimentFields = field(default_factory=Experiment)
    set: options.Settings = ()
    """Change one keyword inside the update line, such as adamw.learning_rate=1e-3; may be given more than once."""
    run: options.Folder = None
    """The run's folder; if it holds a run of this experiment, go on with that. By default a new one below runs/."""
    dry_run: options.Flag = False
    """Show the plan and stop."""
    cluster: Cluster = field(default_factory=Cluster)


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 128 + the signal's number if it was asked to stop."""
    path, rest = options.config_path(arguments, 'train')
    default = Train(options.load_config(path), run=path if path is not None and path.is_dir() else None)
    chosen = options.parse(default, rest, f'train {path or "CONFIG"}')
    experiment = options.settled(chosen.experiment, chosen.set)
    options.start(experiment, where=chosen.cluster)
    if chosen.dry_run:
        show_plan(plan(prepare(experiment)), experiment)
        return
    _train(experiment, chosen.run or new_folder(Path('runs'), _name(path)))


def _name(path: Path | None) -> str:
    """What a run of a config is called: a repeated run as the first one."""
    if path is None:
        return 'run'
    return path.resolve().parent.name.rsplit('-', 1)[0] if path.name == 'experiment.json' else path.stem


def _train(experiment: Experiment, folder: Path) -> None:
    again = f'{options.train_command()} {shlex.quote(str(folder))}'
    with asked_to_stop() as stop, Progress(stop) as progress:
        for event in run(experiment, folder, command=options.typed(), stop=stop):
            progress.show(event, str(folder))
            if event.kind == 'done':
                progress.say(_ending(event.value, folder, again))
            elif event.kind == 'stopped':
                progress.say(f'stopped; step {event.value} is saved. Go on with:\n  {again}')
                sys.exit(stop.code)


def _ending(done: Done, folder: Path, again: str) -> str:
    onward = f'Train on with:\n  {again} --steps {2 * done.step}'
    if not done.taken:
        return f'{folder} has taken its {done.step} steps already. {onward}'
    words = ''.join(f'{verdict.words}\n' for verdict in done.verdicts.values())
    if done.verdicts:
        best = 'no state that was judged held all' if done.best is None else f'step {done.best}, in {folder}/best'
        words += f'best that held the constraints: {best}\n'
    drawn = 'loss.png, constraints.png, verdict.json' if done.verdicts else 'loss.png'
    plot = f'no loss.png ({done.problem})' if done.problem else drawn
    return f'{words}done in {seconds_text(done.seconds)}; in {folder}: metrics.jsonl, {plot}, checkpoints. {onward}'
