"""Comparisons of experiments on the same data and initial weights; a stopped comparison resumes."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist import ledger, line
from jaxdist.core import files
from jaxdist.training.diverged import Diverged
from jaxdist.training.experiment import Experiment, ExperimentError, flat, to_json
from jaxdist.training.labels import labels
from jaxdist.training.run import Event, Ready, run
from jaxdist.training.run_folder import read_records
from jaxdist.training.simulated_time import SECONDS
from jaxdist.training.train import prepare


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
    records = read_records(path)
    for cost in ('sent', 'seconds'):
        row[cost] = max(r.get(cost, 0) for r in records)
    if experiment.clock.compute:
        row['simulated'] = max(r.get(SECONDS, 0) for r in records)
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
