"""Comparisons of experiments on the same data and initial weights; a stopped comparison resumes."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist import ledger, line, report
from jaxdist.core import files
from jaxdist.training.diverged import Diverged
from jaxdist.training.experiment import Experiment, ExperimentError, flat, to_json
from jaxdist.training.labels import labels
from jaxdist.training.pictures import draw_pictures
from jaxdist.training.run import Event, Ready, run
from jaxdist.training.run_folder import read_records
from jaxdist.training.train import prepare

FACTS = ('versions', 'commit', 'devices', 'data', 'baseline')
"""Entries of a run's `run.json` that the page shows."""


class Variant(NamedTuple):
    """One side of a comparison.

    Attributes:
        name: a short label, unique in the comparison.
        experiment: the experiment, with its first seed.
    """

    name: str
    experiment: Experiment


def variants(experiments: Sequence[Experiment], names: Sequence[str] = ()) -> list[Variant]:
    """The experiments as variants, labelled by the transformations and settings in which they differ.

    Args:
        experiments: the experiments.
        names: labels to use instead, one for each experiment, where they are not ''.

    Raises:
        ExperimentError: two experiments differ in their seed only, or have one label, or there is none.

    >>> base = Experiment(update='mean() | adamw(1e-3)')
    >>> both = [base, dataclasses.replace(base, update='mean(codec=int8()) | adamw(1e-3)')]
    >>> [variant.name for variant in variants(both)]
    ['mean()', 'mean(codec=int8())']
    """
    if not experiments:
        raise ExperimentError(
            'there is nothing to compare: give update lines with --update, or a config whose sweep() yields experiments'
        )
    lines = [line.spell(e.update) for e in experiments]
    fields = [{name: v for name, v in flat(e).items() if name not in ('seed', 'update')} for e in experiments]
    for k, same in enumerate(zip(lines, fields, strict=True)):
        if same in zip(lines[:k], fields[:k], strict=True):
            twice = experiments[k].update
            raise ExperimentError(f'{twice!r} would be compared with itself; for more seeds use --seeds')
    texts = labels(experiments)
    chosen = [name or text for name, text in zip(names or texts, texts, strict=True)]
    if equal := [name for name, n in Counter(chosen).items() if n > 1]:
        raise ExperimentError(f'two variants have the label {equal[0]!r}: each needs another one')
    return [Variant(name, e) for name, e in zip(chosen, experiments, strict=True)]


def compare(
    compared: Sequence[Variant],
    seeds: int,
    folder: Path,
    *,
    command: str = '',
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, int, Event]]:
    """Runs every variant with every seed, save the runs that have ended already, and yields (name, seed, event).

    Each run has its own folder below `runs/`, named by a digest of the experiment: see `run_folder`. Afterwards
    `write_report` writes the pages. Beside the events of `run` there is `diverged` (the reason), the last of its run.

    Args:
        compared: the variants, the baseline first.
        seeds: runs of each variant, with consecutive seeds.
        folder: the comparison's folder, created if missing.
        command: the command line, for the record.
        stop: called after every step; True saves and ends.

    Raises:
        ExperimentError: `seeds` is below 1, or the bytes that a variant sends depend on the data.
        InputError: a variant cannot be trained; then none is.

    >>> list(compare([], 0, Path('nowhere')))
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: seeds=0 must be 1 or more
    """
    missing = missing_runs(compared, seeds, folder)
    for _, base in compared:
        if not (run_folder(folder, base) / 'result.json').exists():
            prepare(base)  # an error in the last variant is raised before the first is trained
    for name, experiment, path in missing:
        yield from ((name, experiment.seed, event) for event in run_one(name, experiment, path, command, stop))
        if stop():
            return


def missing_runs(compared: Sequence[Variant], seeds: int, folder: Path) -> list[tuple[str, Experiment, Path]]:
    """The runs that have not ended, seed by seed: the variant's label, the experiment and the run's folder.

    Raises:
        ExperimentError: `seeds` is below 1.
        FileError: the folder of a run is a symbolic link.

    >>> [(name, path.name[-5:]) for name, _, path in missing_runs([Variant('a', Experiment())], 2, Path('nowhere'))]
    [('a', 'seed0'), ('a', 'seed1')]
    """
    if seeds < 1:
        raise ExperimentError(f'seeds={seeds} must be 1 or more')
    each = [(name, dataclasses.replace(e, seed=e.seed + seed)) for seed in range(seeds) for name, e in compared]
    runs = [(name, experiment, run_folder(folder, experiment)) for name, experiment in each]
    missing = [run for run in runs if not (run[-1] / 'result.json').exists()]
    for _, _, path in missing:
        files.refuse_link(path, below=folder)
    return missing


def run_one(name: str, experiment: Experiment, path: Path, command: str, stop: Callable[[], bool]) -> Iterator[Event]:
    """The events of one run, `diverged` among them; at its end writes `result.json`, unless it was stopped.

    Args:
        name: the variant's label.
        experiment: the experiment.
        path: the run's folder; see `run_folder`.
        command: the command line, for the record.
        stop: called after every step; True saves and ends.

    >>> from tempfile import mkdtemp
    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(
    ...     model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8, steps=1
    ... )
    >>> [event.kind for event in run_one('a', small, Path(mkdtemp()) / 'run', '', lambda: False)][0]
    'ready'
    """
    row: dict[str, Any] = {'name': name, 'update': key_of(experiment), 'seed': experiment.seed}
    try:
        for event in run(experiment, path, command=command, stop=stop):
            if event.kind == 'ready':
                row['memory'] = _memory(name, event.value)
                row['better'] = {name: metric.better for name, metric in event.value.training.model.metrics.items()}
            yield event
            if event.kind == 'stopped':
                return
    except Diverged as diverged:
        yield Event('diverged', str(diverged))
        row['held_out'] = None
    else:
        last = next(r for r in reversed(read_records(path)) if 'held_out' in r)
        row['held_out'] = last['held_out']['loss']
        row['metrics'] = {name: value for name, value in last['held_out'].items() if name != 'loss'}
        if 'judged' in last:
            row['violation'] = last['judged']['violation']
    for cost in ('sent', 'seconds'):
        row[cost] = max(r.get(cost, 0) for r in read_records(path))
    if jax.process_index() == 0:
        files.write(path / 'result.json', json.dumps(row, allow_nan=False) + '\n')


def _memory(name: str, ready: Ready) -> int:
    """Bytes of parameters, optimiser state and model state in memory per device."""
    if ready.sent is None:
        raise ExperimentError(f'{name}: the bytes that it sends depend on the data, so they cannot be compared')
    state = ready.training.program.on_mesh().state
    return ledger.memory_bytes({'params': state.params, 'opt_state': state.opt_state, 'model': state.model})


def key_of(experiment: Experiment) -> str:
    """A variant's unique key: its update line, and a digest of its experiment without the seed.

    >>> key_of(Experiment(update='mean() | sgd(0.1)')).partition('  #')[0]
    'mean() | sgd(0.1)'
    """
    data = {**to_json(experiment), 'seed': None}
    return f'{experiment.update}  #{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]}'


def run_folder(folder: Path, experiment: Experiment) -> Path:
    """The folder of an experiment's run, determined by the experiment alone.

    >>> run_folder(Path('f'), Experiment(seed=2)).name.endswith('-seed2')
    True
    """
    return folder / 'runs' / f'{key_of(experiment)[-8:]}-seed{experiment.seed}'


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
    compared: Sequence[Variant], seeds: int, folder: Path, title: str, command: str, formats: Sequence[str] = ()
) -> list[report.Summary]:
    """Writes `rows.jsonl` and what `draw_report` writes; returns a summary per variant.

    Raises:
        ExperimentError: no run has ended yet.

    >>> write_report([Variant('a', Experiment())], 1, Path('nowhere'), 'A title', '')
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: no run in nowhere has ended yet
    """
    ended, results = _ended(compared, seeds, folder), rows(compared, seeds, folder)
    if not results:
        raise ExperimentError(f'no run in {folder} has ended yet')
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
