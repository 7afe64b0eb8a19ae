"""Several experiments on the same data and initial weights, side by side; goes on where it was stopped."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist import ledger, line, report
from jaxdist.training.experiment import Experiment, ExperimentError, flat, to_json
from jaxdist.training.run import Diverged, Event, Ready, run
from jaxdist.training.run_folder import read_records
from jaxdist.training.train import prepare

FACTS = ('versions', 'commit', 'devices', 'data')
"""What the page takes from a run's `run.json`."""


class Variant(NamedTuple):
    """One of the things that are compared: a short label that no other has, and its experiment."""

    name: str
    experiment: Experiment


def variants(experiments: Sequence[Experiment]) -> list[Variant]:
    """The experiments with labels made of what is not the same in most of them, seeds aside.

    Raises:
        ExperimentError: two are the same but for their seed, or there is none.

    >>> base = Experiment(update='mean() | adamw(1e-3)')
    >>> both = [base, dataclasses.replace(base, update='mean(codec=int8()) | adamw(1e-3)')]
    >>> [c.name for c in variants(both)]
    ['mean()', 'mean(codec=int8())']
    """
    if not experiments:
        raise ExperimentError(
            'there is nothing to compare: give update lines, or a config whose sweep() yields experiments'
        )
    lines = [line.spell(e.update) for e in experiments]
    fields = [{name: v for name, v in flat(e).items() if name not in ('seed', 'update')} for e in experiments]
    for k, same in enumerate(zip(lines, fields, strict=True)):
        if same in zip(lines[:k], fields[:k], strict=True):
            twice = experiments[k].update
            raise ExperimentError(f'{twice!r} would be compared with itself: seeds are given with --seeds')
    differ = list(dict.fromkeys(name for f in fields for name in f if any(g.get(name) != f[name] for g in fields)))
    names = [
        ', '.join([*([text] if text else []), *(_setting(n, f[n]) for n in differ if n in f)])
        for text, f in zip(_short_lines([e.update for e in experiments]), fields, strict=True)
    ]
    return [Variant(name or e.update, e) for name, e in zip(names, experiments, strict=True)]


def _setting(name: str, value: Any) -> str:
    """One setting in a label."""
    if isinstance(value, list):
        return ', '.join(value) or f'no {name}'
    return f'{name}={value}'


def _short_lines(updates: list[str]) -> list[str]:
    """Each line without the links that most of them have; nothing where all lines are the same.

    One that lacks any of these links is given whole.
    """
    split = [line.split(update) for update in updates]
    if all(links == split[0] for links in split):
        return [''] * len(updates)
    common = [link for link in split[0] if 2 * sum(link in links for links in split) > len(split)]
    has_all = [all(link in links for link in common) for links in split]
    short = [
        ' | '.join(link for link in links if link not in common or not whole)
        for links, whole in zip(split, has_all, strict=True)
    ]
    return short if all(short) and len(set(short)) == len(set(updates)) else updates


def compare(
    who: Sequence[Variant],
    seeds: int,
    folder: Path,
    *,
    command: str = '',
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, int, Event]]:
    """Runs every variant with every seed, and yields (name, seed, event), but for what the folder holds already.

    Each run has a folder of its own below `runs/`, found again by the experiment: see `run_folder`. When all are done,
    `write_report` makes the pages. To the events of `run` comes `diverged` (why), with which a run can end too.

    Raises:
        ExperimentError: `seeds` below 1, or what a variant sends depends on the data, so that nobody can compare it.
        InputError: one of the variants cannot be trained; then none is.

    >>> list(compare([], 0, Path('nowhere')))
    Traceback (most recent call last):
    jaxdist.training.experiment.ExperimentError: seeds=0 must be 1 or more
    """
    if seeds < 1:
        raise ExperimentError(f'seeds={seeds} must be 1 or more')
    for _, base in who:
        if not (run_folder(folder, base) / 'result.json').exists():
            prepare(base)  # a mistake in the last line is not to wait until the first is trained
    for seed in range(seeds):
        for name, base in who:
            experiment = dataclasses.replace(base, seed=base.seed + seed)
            where = run_folder(folder, experiment)
            if (where / 'result.json').exists():
                continue
            yield from ((name, experiment.seed, event) for event in _one(name, experiment, where, command, stop))
            if stop():
                return


def _one(name: str, experiment: Experiment, where: Path, command: str, stop: Callable[[], bool]) -> Iterator[Event]:
    """One run, and its row of results, unless it was stopped before its end."""
    row: dict[str, Any] = {'name': name, 'update': _key(experiment), 'seed': experiment.seed}
    try:
        for event in run(experiment, where, command=command, stop=stop):
            if event.kind == 'ready':
                row['memory'] = _memory(name, event.value)
            yield event
            if event.kind == 'stopped':
                return
    except Diverged as diverged:
        yield Event('diverged', str(diverged))
        row['held_out'] = None
    else:
        last = next(r for r in reversed(read_records(where)) if 'held_out' in r)
        row['held_out'] = last['held_out']['loss']
        if 'accuracy' in last['held_out']:
            row['accuracy'] = last['held_out']['accuracy']
        if 'judged' in last:
            row['violation'] = last['judged']['violation']
    for cost in ('sent', 'seconds'):
        row[cost] = max(r.get(cost, 0) for r in read_records(where))
    if jax.process_index() == 0:
        (where / 'result.json').write_text(json.dumps(row, allow_nan=False) + '\n')


def _memory(name: str, ready: Ready) -> int:
    """Bytes that a device stores between steps."""
    if ready.sent is None:
        raise ExperimentError(f'{name}: the bytes that it sends depend on the data, so they cannot be compared')
    state = ready.training.program.state
    return ledger.memory_bytes({'params': state.params, 'opt_state': state.opt_state})


def _key(experiment: Experiment) -> str:
    """What tells a variant from all others: its line, and a digest of everything but the seed."""
    data = {**to_json(experiment), 'seed': None}
    return f'{experiment.update}  #{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]}'


def run_folder(folder: Path, experiment: Experiment) -> Path:
    """Where the run of one experiment lies: the same experiment always finds its own again.

    >>> run_folder(Path('f'), Experiment(seed=2)).name.endswith('-seed2')
    True
    """
    return folder / 'runs' / f'{_key(experiment)[-8:]}-seed{experiment.seed}'


def rows(who: Sequence[Variant], seeds: int, folder: Path) -> list[dict[str, Any]]:
    """The results that are there, in the variants' order: name, update, seed, held_out, sent, memory, seconds.

    >>> rows([Variant('a', Experiment())], 1, Path('nowhere'))
    []
    """
    paths = [run_folder(folder, experiment) / 'result.json' for experiment in _ended(who, seeds, folder)]
    rows = [json.loads(path.read_text()) for path in paths]
    # `memory` was called `held` in version 0.1.0.
    return [{'memory' if name == 'held' else name: x for name, x in row.items()} for row in rows]


def write_report(who: Sequence[Variant], seeds: int, folder: Path, title: str, command: str) -> list[report.Summary]:
    """Writes `rows.jsonl`, `table.md`, `frontier.png`, `curves.png` and `index.html`; returns the table's lines.

    Raises:
        ExperimentError: no run has ended yet.

    >>> write_report([Variant('a', Experiment())], 1, Path('nowhere'), 'A title', '')
    Traceback (most recent call last):
    jaxdist.training.experiment.ExperimentError: no run in nowhere has ended yet
    """
    ended, results = _ended(who, seeds, folder), rows(who, seeds, folder)
    if not results:
        raise ExperimentError(f'no run in {folder} has ended yet')
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in results))
    names = {_key(experiment): name for name, experiment in who}
    results = [{**row, 'name': names[row['update']]} for row in results]
    summaries = report.summarise(results)
    facts = json.loads((run_folder(folder, ended[0]) / 'run.json').read_text())
    records: dict[str, list[Any]] = {}
    for row, experiment in zip(results, ended, strict=True):
        if row['held_out'] is not None:  # of a run that diverged, the table tells
            records.setdefault(row['name'], []).append(read_records(run_folder(folder, experiment)))
    (folder / 'table.md').write_text(report.markdown_table(summaries))
    report.page(
        title,
        [f'{len(who)} variants, {seeds} seeds each, on the same data and initial weights.'],
        {'Held-out quality, bytes and time': summaries},
        _plots(summaries, records, facts['baseline'], folder) if records else {},
        {'command': command, 'first experiment': to_json(ended[0]), **{name: facts[name] for name in FACTS}},
        folder / 'index.html',
    )
    return summaries


def _plots(
    summaries: list[report.Summary], records: dict[str, list[Any]], baseline: dict[str, float], folder: Path
) -> dict[str, Path]:
    """Draws the plots, and returns them with their captions."""
    frontier, curves = folder / 'frontier.png', folder / 'curves.png'
    report.frontier_plot(summaries, frontier, *baseline.items())
    report.curves_plot(records, curves)
    return {'Quality against bytes': frontier, 'Quality while training': curves}


def _ended(who: Sequence[Variant], seeds: int, folder: Path) -> list[Experiment]:
    """Those that have ended, in the order of `rows`."""
    each = [dataclasses.replace(e, seed=e.seed + s) for _, e in who for s in range(seeds)]
    return [experiment for experiment in each if (run_folder(folder, experiment) / 'result.json').exists()]
