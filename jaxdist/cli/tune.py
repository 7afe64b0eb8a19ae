"""`jaxdist tune`: the same number of trials for each variant, and then a comparison of each at its best."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxdist.cli import options
from jaxdist.cli.compare import Comparison, parse, show_table, shown, variants_of
from jaxdist.cli.compilation_cache import keep_programs
from jaxdist.cli.progress import Progress, end_if_stopped
from jaxdist.cli.stopping import asked_to_stop
from jaxdist.core import files
from jaxdist.training.compare import Variant, compare
from jaxdist.training.comparison_report import write_report
from jaxdist.training.experiment import space
from jaxdist.training.search_space import Field, applies, check_fields, read_field
from jaxdist.training.tuning import Trial, best_variants, trials_csv, tune

PART = 'JAXDIST_TUNE_PART'
"""The environment variable by which a process of `--jobs` knows its share of the variants: `number/processes`."""


@dataclass(frozen=True)
class Tune(Comparison):
    """Gives each variant the same number of trials over the named fields, and compares each at its best.

    The first trial of a variant is the experiment as it is written; the comparison at the end has seeds that no trial
    has had. Every trial is kept, and tuning that was stopped is resumed by the same command.
    """

    over: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FIELD=RANGE')] = ()
    """A field and its range, as adamw.learning_rate=log(1e-4, 1e-1); also uniform(0.0, 0.9), int(1, 64), choice(1, 2).
    Repeat the option for every field. By default those of the config's space()."""
    trials: int = 12
    """Trials of each variant."""
    trial_seeds: int = 1
    """Runs of each trial, with consecutive seeds."""
    jobs: int = 1
    """Processes at once, each with a share of the variants."""


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 128 + the signal's number if it was asked to stop."""
    path, rest = options.config_path(arguments, 'tune')
    chosen = parse(Tune, path, rest, options.load_config(path, options.scripts(rest), 'tune'))
    compared = variants_of(chosen, path, rest)
    fields = [read_field(text) for text in chosen.over or space(path or Path())]
    check_fields(fields, [experiment for _, experiment in compared])
    name = path.stem if path else ''
    folder = chosen.out or Path('runs') / f'tune-{name}'
    part = os.environ.get(PART)
    if chosen.jobs > 1 and part is None:
        _in_processes(min(chosen.jobs, len(compared)), arguments)
    options.start(*(experiment for _, experiment in compared))
    kept = keep_programs(chosen.compilation_cache)
    share = _share(compared, part)
    own = [field for field in fields if any(applies(field, experiment) for _, experiment in share)]
    _tune(chosen, share, own, folder, kept)
    if part is not None:
        return
    best, command = best_variants(compared, chosen.trial_seeds, folder), options.command_line()
    shown(lambda stop: compare(best, chosen.seeds, folder, command=command, stop=stop), '')
    files.write(folder / 'trials.csv', trials_csv(compared, folder))
    title = chosen.title or f'{name}: each variant at its best of {chosen.trials} trials'
    show_table(write_report(best, chosen.seeds, folder, title, command, chosen.formats), folder)


def _tune(chosen: Tune, compared: list[Variant], fields: list[Field], folder: Path, kept: str) -> None:
    """Runs the trials, and prints a line for each."""
    command, seeds = options.command_line(), chosen.trial_seeds
    with asked_to_stop() as stop, Progress(stop) as progress:
        for label, _, event in tune(compared, fields, chosen.trials, seeds, folder, command=command, stop=stop):
            progress.print_line(kept)  # at first, if nothing is wrong with the variants
            kept = ''
            if event.kind == 'tried':
                progress.print_line(f'{label}: {trial_text(event.value)}')
        end_if_stopped(stop, progress)


def trial_text(trial: Trial) -> str:
    """A trial in words.

    >>> trial_text(Trial({'sgd.learning_rate': 0.1}, 2.5)), trial_text(Trial({}, None, 'diverged'))
    ('loss 2.5000  sgd.learning_rate=0.1', 'no loss (diverged)')
    """
    loss = f'loss {trial.loss:.4f}' if trial.loss is not None else f'no loss ({trial.reason})'
    return '  '.join([loss, *(f'{name}={value}' for name, value in trial.values.items())])


def _share(compared: list[Variant], part: str | None) -> list[Variant]:
    """The variants of this process."""
    if part is None:
        return compared
    number, count = map(int, part.split('/'))
    return compared[number::count]


def _in_processes(count: int, arguments: list[str]) -> None:
    """Runs the trials in processes, each with a share of the variants; ends the program if one fails or is stopped."""
    command = [sys.executable, '-c', 'from jaxdist.cli.main import main; main()', 'tune', *arguments]
    # Several processes share an accelerator, so none reserves most of its memory.
    environment = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    processes = [subprocess.Popen(command, env={**environment, PART: f'{k}/{count}'}) for k in range(count)]
    asked = False
    while any(process.poll() is None for process in processes):
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:  # the processes have had the signal too, and save
            asked = True
        if not asked and any(process.poll() for process in processes):  # one has failed: the others save and end
            asked = True
            for process in processes:
                process.send_signal(signal.SIGINT)
    if code := next((process.returncode for process in processes if process.returncode), 0):
        sys.exit(code)
