"""`jaxdist train`: trains an experiment, or resumes a run."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jaxdist.cli import options
from jaxdist.cli.compilation_cache import keep_programs
from jaxdist.cli.plan import show as show_plan
from jaxdist.cli.progress import Progress
from jaxdist.cli.stopping import asked_to_stop
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.peers import current
from jaxdist.report import seconds_text
from jaxdist.training.experiment import Experiment
from jaxdist.training.plan import plan
from jaxdist.training.run import Done, run
from jaxdist.training.run_folder import code_of, new_folder
from jaxdist.training.train import prepare
from jaxdist.training.user_code import script_options


@dataclass(frozen=True)
class Train(options.OneRun):
    """Trains an experiment and writes a run folder.

    The config is a Python file, a run's folder (to resume that run) or an experiment.json (to repeat it); every field
    can be changed by an option.
    """

    dry_run: options.Flag = False
    """Show the plan and stop."""
    cluster: Cluster = field(default_factory=Cluster)


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 128 + the signal's number if it was asked to stop."""
    path, rest = options.config_path(arguments, 'train')
    folder = path if path is not None and path.is_dir() else None
    default = Train(options.load_config(path, options.scripts(rest)), run=folder)
    chosen = options.parse(default, rest, f'train {path or "CONFIG"}')
    experiment = options.settled(chosen.experiment, chosen.set)
    options.start(experiment, cluster=chosen.cluster)
    kept = keep_programs(chosen.compilation_cache)
    if chosen.dry_run:
        show_plan(plan(prepare(experiment)), experiment, kept)
        return
    _train(experiment, chosen.run or new_folder(Path('runs'), _name(path)), kept)


def _name(path: Path | None) -> str:
    """The name of a config's runs; a run that is repeated from its experiment.json has the name of the first."""
    if path is None:
        return 'run'
    return path.resolve().parent.name.rsplit('-', 1)[0] if path.name == 'experiment.json' else path.stem


def _train(experiment: Experiment, folder: Path, kept: str) -> None:
    resume = f'{options.train_command()} {shlex.quote(str(folder))}'
    with asked_to_stop() as stop, Progress(stop) as progress:
        for event in run(experiment, folder, command=options.command_line(), stop=stop):
            progress.print_line(kept)  # at first, if nothing is wrong with the experiment
            kept = ''
            progress.show(event, str(folder))
            if event.kind == 'done':
                progress.print_line(_ending(event.value, folder, resume + script_options(code_of(experiment))))
            elif event.kind == 'stopped':
                resume += script_options(code_of(experiment))
                progress.print_line(f'stopped; step {event.value} is saved. Resume with:\n  {resume}')
                sys.exit(stop.code)


def _ending(done: Done, folder: Path, resume: str) -> str:
    longer = f'Train longer with:\n  {resume} --steps {2 * done.step}'
    if not done.taken:
        return f'{folder} has already taken its {done.step} steps. {longer}'
    words = ''.join(f'{verdict.words}\n' for verdict in done.verdicts.values())
    if done.verdicts:
        saved = f'step {done.best}, in {folder}/best'
        words += f'best feasible state: {"none was evaluated" if done.best is None else saved}\n'
    if done.goodput.starts > 1 or current() is not None:
        words += f'{done.goodput.words}\n'
    plots = 'loss.png, constraints.png, verdict.json' if done.verdicts else 'loss.png'
    files = f'no loss.png ({done.problem})' if done.problem else plots
    return f'{words}done in {seconds_text(done.seconds)}; in {folder}: metrics.jsonl, {files}, checkpoints. {longer}'
