"""`jaxdist compare`: several update lines, or a config's sweep, on the same data and initial weights."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxdist import report
from jaxdist.commands import options
from jaxdist.commands.progress import Progress
from jaxdist.commands.train import asked_to_stop
from jaxdist.compare import Contender, compare, contenders, run_folder, write_report
from jaxdist.experiment import Experiment, ExperimentError, sweep


@dataclass(frozen=True)
class Compare:
    """Runs several update lines, or a config's sweep, and writes a report. Started again, it goes on where it stopped."""

    experiment: options.ExperimentFields = field(default_factory=Experiment)
    lines: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name='update', metavar='LINE')] = ()
    """An update line to compare; give it more than once. Without any, the config's sweep() is run."""
    seeds: int = 1
    """Runs of each, with seeds from the experiment's on."""
    out: Path | None = None
    """The folder for rows, table, plots and page. By default runs/compare-CONFIG."""
    title: str = ''
    """The page's title."""


def main(arguments: list[str]) -> None:
    """Runs the command."""
    path, rest = options.config_path(arguments, 'compare')
    default = Compare(options.load_config(path))
    chosen = options.parse(Compare, default, rest, f'compare {path.name or "CONFIG"}', Compare.__doc__ or '')
    experiments = [dataclasses.replace(chosen.experiment, update=line) for line in chosen.lines] or _swept(path, rest)
    who = contenders(experiments)
    options.start(max((e for e in experiments), key=lambda e: e.mesh.workers * e.mesh.model))
    folder = chosen.out or Path('runs') / f'compare-{path.stem}'
    if _run(who, chosen.seeds, folder):
        command = options.typed()
        _show(write_report(who, chosen.seeds, folder, chosen.title or f'{path.stem}: a comparison', command), folder)


def _swept(path: Path, rest: list[str]) -> list[Experiment]:
    """The config's own sweep, which options of the command line other than compare's do not change."""
    return list(sweep(path))


def _run(who: list[Contender], seeds: int, folder: Path) -> bool:
    """Runs what is not there yet; False if it was asked to stop before the end."""
    with asked_to_stop() as stop:
        shown: Progress | None = None
        for name, seed, event in compare(who, seeds, folder, stop=stop):
            if event.kind == 'ready':
                experiment = event.value.training.experiment
                shown = Progress(experiment, run_folder(folder, experiment), options.typed(), f'{name}, seed {seed}')
            if shown is not None:
                shown.show(event)
        return not stop()


def _show(summaries: list[report.Summary], folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    header, rows = report.cells(summaries)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in report.notes(summaries):
        console.print(note)
    console.print(f'in {folder}: index.html, table.md, frontier.png, curves.png, rows.jsonl')
