"""The report of a comparison: its rows, tables, pictures and page."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdist import report
from jaxdist.core import files
from jaxdist.training.compare import Variant, key_of, run_folder
from jaxdist.training.experiment import Experiment, ExperimentError, to_json
from jaxdist.training.pictures import draw_pictures
from jaxdist.training.run_folder import read_records

FACTS = ('versions', 'commit', 'devices', 'data', 'baseline')
"""Entries of a run's `run.json` that the page shows."""


def rows(compared: Sequence[Variant], seeds: int, folder: Path) -> list[dict[str, Any]]:
    """The results of the runs that have ended, in the variants' order; see `jaxdist.report.summarise`.

    >>> rows([Variant('a', Experiment())], 1, Path('nowhere'))
    []
    """
    paths = [run_folder(folder, experiment) / 'result.json' for experiment in _ended(compared, seeds, folder)]
    return [_present(json.loads(path.read_text())) for path in paths]


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """A row as this version writes it. In version 0.1.0 `memory` was called `held`, and accuracy the only metric."""
    row = {'memory' if name == 'held' else name: x for name, x in row.items()}
    if 'accuracy' in row:
        row |= {'metrics': {'accuracy': row.pop('accuracy')}, 'better': {'accuracy': 'higher'}}
    return row


def write_report(
    compared: Sequence[Variant],
    seeds: int,
    folder: Path,
    title: str,
    command: str,
    formats: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> list[report.Summary]:
    """Writes `rows.jsonl` and what `draw_report` writes; returns a summary per variant.

    Args:
        compared, seeds, folder, command: as in `compare`.
        title: the page's title.
        formats: formats of the pictures beside PNG.
        targets: values of metrics, such as `loss=1.8`: the table has the simulated seconds to each.

    Raises:
        ExperimentError: no run has ended yet.
        InputError: a target has a mistake, is of a metric that there is not, or there is no clock.

    >>> write_report([Variant('a', Experiment())], 1, Path('nowhere'), 'A title', '')
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: no run in nowhere has ended yet
    """
    ended, results = _ended(compared, seeds, folder), rows(compared, seeds, folder)
    if not results:
        raise ExperimentError(f'no run in {folder} has ended yet')
    results = [_with_targets(row, e, folder, targets) for row, e in zip(results, ended, strict=True)]
    files.write(folder / 'rows.jsonl', ''.join(json.dumps(row) + '\n' for row in results))
    names = {key_of(experiment): name for name, experiment in compared}
    results = [{**row, 'name': names[row['update']]} for row in results]
    facts = json.loads((run_folder(folder, ended[0]) / 'run.json').read_text())
    records: dict[str, list[Any]] = {}
    for row, experiment in zip(results, ended, strict=True):
        if row['held_out'] is not None:  # the curves leave diverged runs out; the table counts them
            records.setdefault(row['name'], []).append(read_records(run_folder(folder, experiment)))
    details = {'command': command, 'first experiment': to_json(ended[0]), **{name: facts[name] for name in FACTS}}
    return draw_report(results, records, title, details, folder, formats)


def _with_targets(row: dict[str, Any], experiment: Experiment, folder: Path, targets: Sequence[str]) -> dict[str, Any]:
    """A row with the simulated seconds to each target."""
    if not targets or row['held_out'] is None:
        return row
    records, better = read_records(run_folder(folder, experiment)), {'loss': 'lower', **row.get('better', {})}
    each = [report.read_target(text) for text in targets]
    return row | {'reached': {target.text: report.seconds_to(target, records, better) for target in each}}


def draw_report(
    results: Sequence[dict[str, Any]],
    records: dict[str, list[Any]] | None,
    title: str,
    details: dict[str, Any],
    folder: Path,
    formats: Sequence[str] = (),
) -> list[report.Summary]:
    """Writes the tables, `index.html` and the pictures of results that are known; returns one summary per variant.

    `table.md`, `table.tex` and `table.csv` have a row for each variant, `runs.csv` one for each run.

    Args:
        results: a row for each run, as in `rows`.
        records: for each variant's name the records of its runs that did not diverge, or None: see `draw_pictures`.
        title: the page's title.
        details: what the page shows about the runs; `baseline` is the name of a loss, and the loss.
        folder: the comparison's folder.
        formats: formats of the pictures beside PNG: `svg`, `pdf`.

    >>> row = {'name': 'a', 'update': 'a()', 'seed': 0, 'held_out': None, 'sent': 8, 'memory': 9, 'seconds': 1.0}
    >>> from tempfile import mkdtemp
    >>> (summary,) = draw_report([row], {}, 'A', {'command': 'x', 'baseline': {'entropy': 3.0}}, Path(mkdtemp()))
    >>> summary.diverged
    1
    """
    summaries = report.summarise(results)
    files.write(folder / 'table.md', report.markdown_table(summaries))
    files.write(folder / 'table.tex', report.latex_table(summaries))
    files.write(folder / 'table.csv', report.csv_table(summaries))
    files.write(folder / 'runs.csv', report.csv_runs(results))
    (baseline,) = details['baseline'].items()
    seeds = max(summary.runs for summary in summaries)
    report.page(
        title,
        [f'{len(summaries)} variants, {seeds} seeds each, on the same data and initial weights.'],
        {'Held-out quality, bytes and time': summaries},
        draw_pictures(summaries, records, baseline, folder, formats),
        details,
        folder / 'index.html',
    )
    return summaries


def _ended(compared: Sequence[Variant], seeds: int, folder: Path) -> list[Experiment]:
    """The experiments whose runs have ended, in the order of `rows`."""
    each = [dataclasses.replace(e, seed=e.seed + s) for _, e in compared for s in range(seeds)]
    return [experiment for experiment in each if (run_folder(folder, experiment) / 'result.json').exists()]
