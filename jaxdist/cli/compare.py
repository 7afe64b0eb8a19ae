"""`jaxdist compare`: several update lines, or a config's sweep, on the same data and initial weights."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.markup import escape
from rich.table import Table

from jaxdist import report
from jaxdist.cli import options
from jaxdist.cli.compilation_cache import keep_programs
from jaxdist.cli.failing import fail
from jaxdist.cli.progress import Progress, end_if_stopped
from jaxdist.cli.stopping import Stop, asked_to_stop
from jaxdist.cli.sweep import Failure, Machines, run_elsewhere
from jaxdist.cli.terminal import Terminal
from jaxdist.training.compare import Variant, compare, missing_runs, variants
from jaxdist.training.comparison_report import rows, write_report
from jaxdist.training.experiment import Experiment, ExperimentError, sweep
from jaxdist.training.pictures import drawn
from jaxdist.training.run import Event

Chosen = TypeVar('Chosen', bound='Comparison')


@dataclass(frozen=True)
class Shared(Experiment):
    """An experiment without an option for its update line: `Compare` has one that can be repeated."""

    update: Annotated[tyro.conf.Suppress[tyro.conf.Fixed[str]], tyro.conf.arg(name='one-update')] = ''


@dataclass(frozen=True)
class Comparison:
    """The variants of a comparison, and its report."""

    experiment: Annotated[Shared, tyro.conf.arg(name='')] = field(default_factory=Shared)
    update: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='LINE')] = ()
    """An update line to compare; repeat the option for every line. Without it, the config's sweep() is run."""
    label: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT')] = ()
    """A label for each --update, in their order, such as 'DiLoCo, H = 30'. By default what differs between them."""
    script: options.Scripts = ()
    seeds: int = 1
    """Runs of each variant, with consecutive seeds from the experiment's on."""
    out: options.Folder = None
    """The folder for rows, table, plots and page. By default runs/compare-CONFIG, or runs/tune-CONFIG."""
    compilation_cache: options.CompilationCache = ''
    title: Annotated[str | None, tyro.conf.arg(metavar='TEXT', help_behavior_hint='')] = None
    """The page's title. By default the config's name."""
    formats: tuple[Literal['svg', 'pdf'], ...] = ()
    """Formats of the pictures beside PNG."""
    target: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='METRIC=VALUE')] = ()
    """A held-out value, as loss=1.8: the table has the simulated seconds to it; may be given more than once."""


@dataclass(frozen=True)
class Compare(Comparison):
    """Runs several update lines, or a config's sweep, on the same data and initial weights, and writes a report.

    A comparison that was stopped is resumed by the same command. Options apply to every experiment of a sweep.
    """

    machines: Annotated[Machines, tyro.conf.arg(name='')] = field(default_factory=Machines)


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 128 + the signal's number if it was asked to stop."""
    path, rest = options.config_path(arguments, 'compare')
    chosen = parse(Compare, path, rest, options.load_config(path, options.scripts(rest), 'compare'))
    compared = variants_of(chosen, path, rest)
    check_targets(chosen.target, [experiment for _, experiment in compared])
    name = path.stem if path else ''
    folder = chosen.out or Path('runs') / f'compare-{name}'
    command = options.command_line()
    failures: list[Failure] = []
    if chosen.machines.on == 'here':
        options.start(*(experiment for _, experiment in compared))
        kept = keep_programs(chosen.compilation_cache)
        shown(lambda stop: compare(compared, chosen.seeds, folder, command=command, stop=stop), kept)
    elif missing := missing_runs(compared, chosen.seeds, folder):
        failures = run_elsewhere(chosen.machines, missing, folder, chosen.compilation_cache)
    title = chosen.title or f'{name}: a comparison'
    if not failures or rows(compared, chosen.seeds, folder):
        summaries = write_report(compared, chosen.seeds, folder, title, command, chosen.formats, chosen.target)
        show_table(summaries, folder)
    if failures:
        names = '; '.join(failure.label for failure in failures)
        fail(f'{len(failures)} run{"s" * (len(failures) > 1)} failed, as named above: {names}', failures[0].code)


def parse(kind: type[Chosen], path: Path | None, rest: list[str], base: Experiment) -> Chosen:
    """The options of this kind; fields of the experiment that are not given are those of `base`.

    >>> parse(Compare, None, ['--batch', '8'], Experiment()).experiment.batch
    8
    """
    default = kind(Shared(**{**_fields(base), 'update': ''}))
    return options.parse(default, rest, f'{kind.__name__.lower()} {path or "CONFIG"}')


def variants_of(chosen: Comparison, path: Path | None, rest: list[str]) -> list[Variant]:
    """The variants: the chosen update lines, or else the config's sweep.

    Raises:
        ExperimentError: there is no variant, or labels do not fit.

    >>> [name for name, _ in variants_of(Compare(update=('mean() | sgd(0.1)', 'mean() | sgd(0.2)')), None, [])]
    ['sgd(0.1)', 'sgd(0.2)']
    """
    if chosen.label and len(chosen.label) != len(chosen.update):
        raise ExperimentError(
            f'there are {len(chosen.label)} --label for {len(chosen.update)} --update: give one label for each update '
            'line; in a config sweep() yields pairs (label, experiment)'
        )
    if chosen.update:
        return variants([_under(chosen, line) for line in chosen.update], chosen.label)
    labelled = list(sweep(path or Path()))
    experiments = [_under(parse(type(chosen), path, rest, base), base.update) for _, base in labelled]
    return variants(experiments, [name for name, _ in labelled])


def check_targets(targets: Sequence[str], experiments: Sequence[Experiment]) -> None:
    """Checks targets before anything is trained, as far as they are known then.

    Raises:
        InputError: a target has a mistake.
        ExperimentError: there is no clock.

    >>> check_targets(['loss=1.8'], [Experiment()])
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: --target loss=1.8: the time to it is simulated, so it needs a clock, as
    in --clock.compute 'lognormal(mean=0.05)'
    """
    for text in targets:
        report.read_target(text)
        if not all(experiment.clock.compute for experiment in experiments):
            raise ExperimentError(
                f'--target {text}: the time to it is simulated, so it needs a clock, as in --clock.compute '
                "'lognormal(mean=0.05)'"
            )


def shown(events: Callable[[Stop], Iterator[tuple[str, int, Event]]], kept: str) -> None:
    """Runs and shows the events of variants and seeds; ends the program if it was asked to stop."""
    with asked_to_stop() as stop, Progress(stop) as progress:
        for name, seed, event in events(stop):
            progress.print_line(kept)  # at first, if nothing is wrong with the variants
            kept = ''
            progress.show(event, f'{name}, seed {seed}')
        end_if_stopped(stop, progress)


def _under(chosen: Comparison, line: str) -> Experiment:
    """The chosen experiment with another update line."""
    return Experiment(**{**_fields(chosen.experiment), 'update': line})


def _fields(experiment: Experiment) -> dict[str, Any]:
    return {field.name: getattr(experiment, field.name) for field in dataclasses.fields(Experiment)}


def show_table(summaries: list[report.Summary], folder: Path) -> None:
    """Prints the table of a comparison, its notes, and the files in its folder."""
    console = Terminal()
    header, cells = report.cells(summaries)
    table = Table()
    for head in header:
        table.add_column(escape(head), overflow='fold')
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(table)
    for note in report.notes(summaries):
        console.print(note, markup=False)
    files = ['index.html', 'table.md', 'table.tex', 'table.csv', 'runs.csv', 'rows.jsonl']
    files += ['trials.csv'] if (folder / 'trials.csv').exists() else []
    names = ', '.join([*files, *(path.name for path in drawn(folder) if path.suffix == '.png')])
    console.print(f'in {folder}: {names}', markup=False)
