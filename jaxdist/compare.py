"""Several experiments on the same data and initial weights, side by side; goes on where it was stopped."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist import ledger, line, report
from jaxdist.experiment import Experiment, ExperimentError, flat, to_json
from jaxdist.folder import read_records
from jaxdist.run import Diverged, Event, run


class Contender(NamedTuple):
    """One of the things that are compared: a short label that no other has, and its experiment."""

    name: str
    experiment: Experiment


def contenders(experiments: Sequence[Experiment]) -> list[Contender]:
    """The experiments with labels made of what is not the same in all of them, seeds aside.

    Raises:
        ExperimentError: two are the same but for their seed, or there is none.

    >>> base = Experiment(update='mean() | adamw(1e-3)')
    >>> both = [base, dataclasses.replace(base, update='mean(codec=int8()) | adamw(1e-3)')]
    >>> [c.name for c in contenders(both)]
    ['mean()', 'mean(codec=int8())']
    """
    if not experiments:
        raise ExperimentError('there is nothing to compare: give --update lines, or a config with a sweep()')
    fields = [{name: v for name, v in flat(e).items() if name not in ('seed', 'update')} for e in experiments]
    differ = [name for name in fields[0] if any(f.get(name) != fields[0][name] for f in fields)]
    differ += sorted({name for f in fields for name in f} - set(fields[0]))
    lines = _short_lines([e.update for e in experiments])
    names = [
        ', '.join([*([text] if text else []), *(f'{n}={f[n]}' for n in differ if n in f and not n.endswith('kind'))])
        for text, f in zip(lines, fields, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExperimentError(f'these would be compared with themselves: {twice}; seeds are given with --seeds')
    return [Contender(name or e.update, e) for name, e in zip(names, experiments, strict=True)]


def _short_lines(updates: list[str]) -> list[str]:
    """Each line without the links that all of them have; nothing where all lines are the same."""
    split = [line.split(update) for update in updates]
    common = [link for link in split[0] if all(link in links for links in split)]
    short = [' | '.join(link for link in links if link not in common) for links in split]
    return short if len(set(updates)) > 1 and all(short) else (updates if len(set(updates)) > 1 else [''] * len(updates))


def compare(
    who: Sequence[Contender], seeds: int, folder: Path, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, int, Event]]:
    """Runs every contender with every seed, and yields (name, seed, event). What the folder holds already is not run again.

    Contender k's run with seed s lies in `runs/`, one folder each. When all are done, `report` makes the pages.

    Raises:
        ExperimentError: `seeds` below 1, or the folder holds another comparison.

    >>> list(compare([], 0, Path('nowhere')))
    Traceback (most recent call last):
    jaxdist.experiment.ExperimentError: seeds=0 must be 1 or more
    """
    if seeds < 1:
        raise ExperimentError(f'seeds={seeds} must be 1 or more')
    for seed in range(seeds):
        for name, base in who:
            experiment = dataclasses.replace(base, seed=base.seed + seed)
            where = run_folder(folder, experiment)
            if (where / 'result.json').exists():
                continue
            yield from ((name, experiment.seed, event) for event in _one(name, experiment, where, stop))
            if stop():
                return


def _one(name: str, experiment: Experiment, where: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """One run, and its row of results, unless it was stopped before its end."""
    row: dict[str, Any] = {'name': name, 'update': _key(experiment), 'seed': experiment.seed}
    try:
        for event in run(experiment, where, stop=stop):
            if event.kind == 'ready':
                state = event.value.training.program.state
                row['held'] = ledger.held({'params': state.params, 'opt_state': state.opt_state})
                row['sent'] = (event.value.sent or 0) * experiment.steps
            yield event
            if event.kind == 'stopped':
                return
    except Diverged as diverged:
        yield Event('diverged', str(diverged))
        row['held_out'] = None
    else:
        last = [r for r in read_records(where) if 'held_out' in r][-1]
        scores = last['held_out']
        row.update(held_out=scores['loss'], **({'accuracy': scores['accuracy']} if 'accuracy' in scores else {}))
    row['seconds'] = max((r['seconds'] for r in read_records(where)), default=0.0)
    if jax.process_index() == 0:
        (where / 'result.json').write_text(json.dumps(row) + '\n')


def _key(experiment: Experiment) -> str:
    """What tells a contender from all others: its line, and a digest of everything but the seed."""
    data = {**to_json(experiment), 'seed': None}
    return f'{experiment.update}  #{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]}'


def run_folder(folder: Path, experiment: Experiment) -> Path:
    """Where the run of one experiment lies: the same experiment always finds its own again.

    >>> run_folder(Path('f'), Experiment(seed=2)).name.endswith('-seed2')
    True
    """
    return folder / 'runs' / f'{_key(experiment)[-8:]}-seed{experiment.seed}'


def rows(who: Sequence[Contender], seeds: int, folder: Path) -> list[dict[str, Any]]:
    """The results that are there, in the contenders' order: name, update, seed, held_out, sent, held, seconds.

    >>> rows([Contender('a', Experiment())], 1, Path('nowhere'))
    []
    """
    paths = [run_folder(folder, experiment) / 'result.json' for experiment in _ended(who, seeds, folder)]
    return [json.loads(path.read_text()) for path in paths]


def write_report(who: Sequence[Contender], seeds: int, folder: Path, title: str, command: str) -> list[report.Summary]:
    """Writes `rows.jsonl`, `table.md`, `frontier.png`, `curves.png` and the page `index.html`; returns the table's lines.

    Raises:
        ExperimentError: no run has ended yet.

    >>> write_report([Contender('a', Experiment())], 1, Path('nowhere'), 'A title', '')
    Traceback (most recent call last):
    jaxdist.experiment.ExperimentError: no run in nowhere has ended yet
    """
    results = rows(who, seeds, folder)
    if not results:
        raise ExperimentError(f'no run in {folder} has ended yet')
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in results))
    names = {_key(experiment): name for name, experiment in who}
    results = [{**row, 'name': names[row['update']]} for row in results]
    summaries = report.summarise(results)
    facts = json.loads((run_folder(folder, who[0].experiment) / 'run.json').read_text())
    (baseline,) = facts['baseline'].items()
    records: dict[str, list[Any]] = {}
    for row, experiment in zip(results, _ended(who, seeds, folder), strict=True):
        records.setdefault(row['name'], []).append(read_records(run_folder(folder, experiment)))
    report.frontier_plot(summaries, folder / 'frontier.png', baseline)
    report.curves_plot(records, folder / 'curves.png')
    table = report.markdown_table(summaries)
    (folder / 'table.md').write_text(f'{table}\n\n' + '\n'.join(report.notes(summaries)) + '\n')
    report.page(
        title,
        [f'{len(who)} update lines, {seeds} seeds each, on the same data and initial weights.', *report.notes(summaries)],
        {'Held-out quality, bytes and time': summaries},
        {'Quality against bytes': folder / 'frontier.png', 'Quality while training': folder / 'curves.png'},
        {'command': command, 'first experiment': to_json(who[0].experiment), **facts},
        folder / 'index.html',
    )
    return summaries


def _ended(who: Sequence[Contender], seeds: int, folder: Path) -> list[Experiment]:
    """Those that have ended, in the order of `rows`."""
    each = [dataclasses.replace(e, seed=e.seed + s) for _, e in who for s in range(seeds)]
    return [experiment for experiment in each if (run_folder(folder, experiment) / 'result.json').exists()]
