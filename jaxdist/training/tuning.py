"""Tuning: each variant of a comparison gets the same number of trials over named fields, with the same seeds.

The first trial of a variant is the experiment as it is written. Later ones are proposed by Optuna's TPE sampler (Akiba
et al. 2019, arXiv 1907.10902; Bergstra et al. 2011, "Algorithms for hyper-parameter optimization") from the trials that
the variant has had, and by nothing else, so that tuning resumes where it was stopped with the same proposals.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist import report
from jaxdist.core import files
from jaxdist.core.errors import InputError, MissingExtraError
from jaxdist.training.compare import Variant, key_of, run_folder, run_one
from jaxdist.training.comparison_report import rows
from jaxdist.training.experiment import Experiment, ExperimentError
from jaxdist.training.run import Event
from jaxdist.training.search_space import Field, applies, check_fields, replaced, value


class Trial(NamedTuple):
    """A trial of a variant.

    Attributes:
        values: the values of the fields; in the first trial those that the experiment has.
        loss: the mean held-out loss over the trials' seeds; None if a run diverged, or the values do not fit.
        reason: why there is no loss; else ''.
    """

    values: dict[str, Any]
    loss: float | None
    reason: str = ''


def tune(
    compared: Sequence[Variant],
    fields: Sequence[Field],
    trials: int,
    seeds: int,
    folder: Path,
    *,
    command: str = '',
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, int, Event]]:
    """Runs the trials that have not ended, in turns over the variants, and yields (variant and trial, seed, event).

    Beside the events of `run_one` there is `tried` (a `Trial`), the last of its trial.

    Args:
        compared: the variants.
        fields: what is varied; a variant has those that apply to it.
        trials: trials of each variant.
        seeds: runs of each trial, with consecutive seeds.
        folder: the folder, with the runs in `runs/` and the trials of each variant in `trials/`.
        command: the command line, for the record.
        stop: called after every step; True saves and ends.

    Raises:
        ExperimentError: a number is below 1, a field applies to no variant, a variant has no field, or the folder has
            trials over other fields.
        ImportError: Optuna is not installed.

    >>> list(tune([], [], 0, 1, Path('nowhere')))
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: trials=0 and seeds=1 must be 1 or more
    """
    if min(trials, seeds) < 1:
        raise ExperimentError(f'trials={trials} and seeds={seeds} must be 1 or more')
    check_fields(fields, [experiment for _, experiment in compared])
    _optuna()  # the second trial needs it: it should not be missed only then
    for number in range(trials):
        for name, base in compared:
            done = read_trials(folder, base)
            if len(done) > number:
                continue
            own = [field for field in fields if applies(field, base)]
            _check_same(folder, name, own, done)
            values = propose(own, done, number) if number else {}
            label = f'{name}, trial {number + 1} of {trials}'
            try:
                experiment = replaced(base, values)
                yield from _runs(label, experiment, seeds, folder, command, stop)
                if stop():
                    return
                trial = _trial(experiment, values, seeds, folder)
            except InputError as error:
                if not number:
                    raise  # the experiment as it is written
                trial = Trial(values, None, str(error).splitlines()[0])
            if not number:
                trial = trial._replace(values={field.name: value(field, base) for field in own})
            _append(folder, base, trial)
            yield label, base.seed, Event('tried', trial)


def propose(fields: Sequence[Field], done: Sequence[Trial], number: int) -> dict[str, Any]:
    """The values of the next trial, a function of the trials before it and of its number.

    Args:
        fields: what is varied.
        done: the trials before it.
        number: its number.

    Raises:
        ImportError: Optuna is not installed.

    >>> field = Field('sgd.learning_rate', 'log', (1e-3, 1.0))
    >>> 1e-3 <= propose([field], [Trial({'sgd.learning_rate': 0.1}, 2.5)], 1)['sgd.learning_rate'] <= 1.0
    True
    """
    optuna = _optuna()
    distributions: dict[str, Any] = {field.name: _distribution(optuna, field) for field in fields}
    sampler = optuna.samplers.TPESampler(n_startup_trials=4, seed=number)
    study = optuna.create_study(sampler=sampler)
    for trial in done:
        if all(field.admits(trial.values.get(field.name)) for field in fields):
            # A trial without a loss is the worst.
            loss = math.inf if trial.loss is None else trial.loss
            params = {field.name: trial.values[field.name] for field in fields}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=loss))
    params = study.ask(distributions).params
    # Four digits are as good, and shorter in lines and tables.
    return {f.name: _rounded(params[f.name], f) for f in fields}


def best_trial(trials: Sequence[Trial]) -> int:
    """The number of the trial with the lowest loss.

    Raises:
        ExperimentError: no trial has a loss.

    >>> best_trial([Trial({}, 3.0), Trial({}, None, 'diverged'), Trial({}, 2.5)])
    2
    """
    known = {number: trial.loss for number, trial in enumerate(trials) if trial.loss is not None}
    if not known:
        raise ExperimentError('no trial has ended with a loss')
    return min(known, key=known.__getitem__)


def best_variants(compared: Sequence[Variant], seeds: int, folder: Path) -> list[Variant]:
    """Each variant at its best, with the number of its trials in the label, and with seeds that no trial has had.

    A variant of which no trial has a loss stays as it is written.

    Args:
        compared: the variants.
        seeds: runs of each trial.
        folder: the folder of `tune`.

    >>> best_variants([], 1, Path('nowhere'))
    []
    """
    chosen = []
    for name, base in compared:
        trials = read_trials(folder, base)
        try:
            number = best_trial(trials)
        except ExperimentError:
            number = 0
        experiment = replaced(base, trials[number].values) if number else base
        experiment = dataclasses.replace(experiment, seed=base.seed + seeds)
        chosen.append(Variant(f'{name}, best of {len(trials)} trials', experiment))
    return chosen


def trials_csv(compared: Sequence[Variant], folder: Path) -> str:
    """All trials as CSV, for `pandas.read_csv`: variant, trial from 1 on, loss, the reason if there is none, values.

    >>> print(trials_csv([], Path('nowhere')))
    <BLANKLINE>
    """
    every = []
    for name, base in compared:
        for number, (values, loss, reason) in enumerate(read_trials(folder, base), 1):
            every.append({'variant': name, 'trial': number, 'loss': loss, 'reason': reason, **values})
    return report.csv_text(every)


def read_trials(folder: Path, experiment: Experiment) -> list[Trial]:
    """The trials of a variant that have ended.

    >>> read_trials(Path('nowhere'), Experiment())
    []
    """
    path = _path(folder, experiment)
    if not path.exists():
        return []
    return [Trial(**json.loads(text)) for text in path.read_text().splitlines()]


def _optuna() -> Any:
    """The library, which proposes and does not print."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtraError("tuning needs Optuna: pip install 'jaxdist[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _runs(
    label: str, experiment: Experiment, seeds: int, folder: Path, command: str, stop: Callable[[], bool]
) -> Iterator[tuple[str, int, Event]]:
    for seed in range(experiment.seed, experiment.seed + seeds):
        one = dataclasses.replace(experiment, seed=seed)
        path = run_folder(folder, one)
        if not (path / 'result.json').exists():
            files.refuse_link(path, below=folder)
            yield from ((label, seed, event) for event in run_one(label, one, path, command, stop))
        if stop():
            return


def _trial(experiment: Experiment, values: dict[str, Any], seeds: int, folder: Path) -> Trial:
    losses = [row['held_out'] for row in rows([Variant('', experiment)], seeds, folder)]
    if None in losses:
        return Trial(values, None, 'diverged')
    return Trial(values, sum(losses) / len(losses))


def _check_same(folder: Path, name: str, fields: Sequence[Field], done: Sequence[Trial]) -> None:
    """Refuses to go on with trials over other fields, which would count for the same budget."""
    ours = sorted(field.name for field in fields)
    for trial in done:
        if sorted(trial.values) != ours:
            raise ExperimentError(
                f'the trials of {name!r} in {folder} are over {sorted(trial.values)}, not over {ours}: go on with '
                'those, or choose another folder with --out'
            )


def _append(folder: Path, experiment: Experiment, trial: Trial) -> None:
    path = _path(folder, experiment)
    files.refuse_link(path, below=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(trial._asdict()) + '\n', append=True)


def _path(folder: Path, experiment: Experiment) -> Path:
    return folder / 'trials' / f'{key_of(experiment)[-8:]}.jsonl'


def _distribution(optuna: Any, field: Field) -> Any:
    if field.kind == 'choice':
        return optuna.distributions.CategoricalDistribution(field.values)
    kinds = optuna.distributions
    low, high = field.values
    if field.kind == 'int':
        return kinds.IntDistribution(low, high)
    return kinds.FloatDistribution(float(low), float(high), log=field.kind == 'log')


def _rounded(x: Any, field: Field) -> Any:
    if not isinstance(x, float):
        return x
    low, high = field.values
    return min(max(float(f'{x:.4g}'), low), high)
