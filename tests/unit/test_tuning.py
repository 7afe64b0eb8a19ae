"""Tuning: equal budgets, proposals that depend on the trials alone, resuming, and the comparison of the best."""

import csv
import dataclasses
import math
import re
import sys
from pathlib import Path

import pytest
from forked import PLAIN
from run_fixtures import CONFIG, Jaxdist, small

from jaxdist.training.compare import Variant, variants
from jaxdist.training.experiment import Experiment, ExperimentError
from jaxdist.training.search_space import Field, applies, check_fields, read_field, replaced, value
from jaxdist.training.tuning import Trial, best_trial, best_variants, propose, read_trials, tune

RATE = read_field('sgd.learning_rate=log(0.01, 10.0)')
BOTH = variants(
    [
        small(line, simulate=True, steps=3)
        for line in ('mean() | sgd(0.02)', 'sgd(0.02, momentum=0.5) | average(every=2)')
    ]
)


# Fields and their ranges.


@pytest.mark.parametrize(
    'text, values',
    [
        ('adamw.learning_rate = log(1e-4, 1e-1)', (1e-4, 1e-1)),
        ('batch=int(8, 64)', (8, 64)),
        ('sgd[1].momentum=uniform(0, 0.9)', (0, 0.9)),
        ("precision=choice('float32', 'bfloat16')", ('float32', 'bfloat16')),
        ('sgd.momentum=choice(None, 0.9)', (None, 0.9)),
    ],
)
def test_a_field_with_its_range(text: str, values: tuple[object, ...]) -> None:
    field = read_field(text)
    assert (field.name, field.values) == (text.partition('=')[0].strip(), values)
    assert all(map(field.admits, values))
    assert not field.admits(1e9)


@pytest.mark.parametrize(
    'text, problem',
    [
        ('adamw.learning_rate', 'is no field with a range'),
        ('batch=32', 'is no field with a range, as in .* write log'),
        ('batch=range(1, 2)', 'is no field with a range'),
        ('batch=int(1, 2', 'is no field with a range'),
        ('batch=int(f(), 2)', 'is no field with a range'),
        ('batch=int(8, 4)', 'int takes two whole numbers, the lower first'),
        ('batch=int(0.5, 4)', 'int takes two whole numbers'),
        ('sgd.learning_rate=log(0.0, 1.0)', 'the lower first, both above 0'),
        ('sgd.learning_rate=uniform(1.0)', 'uniform takes two numbers'),
        ('batch=choice(8)', 'leaves no choice'),
    ],
)
def test_a_range_that_is_none(text: str, problem: str) -> None:
    with pytest.raises(ExperimentError, match=problem):
        read_field(text)


def test_fields_of_the_experiment_and_of_the_line_are_read_and_replaced() -> None:
    base = small('mean() | sgd(0.1) | sgd(learning_rate=1.0)')
    fields = [read_field(f'{name}=uniform(0, 100)') for name in ('batch', 'model.hidden', 'sgd[1].learning_rate')]
    assert [value(field, base) for field in fields] == [base.batch, base.model.hidden, 1.0]
    new = replaced(base, {'batch': 4, 'sgd[1].learning_rate': 0.25, 'sgd[0].momentum': 0.5})
    assert (new.batch, new.update) == (4, 'mean() | sgd(0.1, momentum=0.5) | sgd(learning_rate=0.25)')
    assert [applies(RATE, each) for each in (base, small('mean() | adam(0.1)'))] == [True, False]


@pytest.mark.parametrize(
    'fields, problem',
    [
        ([], 'there is nothing to tune: name fields'),
        ([RATE, read_field('adam.b1=uniform(0.0, 1.0)')], "no variant has 'adam.b1': it is neither a field"),
        ([read_field('sgd.momentum=uniform(0.0, 0.9)'), read_field('average.every=int(1, 4)')], ''),
        (
            [read_field('average.every=int(1, 4)')],
            r"no field is one of 'mean\(\) \| sgd\(0.02\)': it would have one trial",
        ),
    ],
)
def test_fields_that_do_not_fit_the_variants(fields: list[Field], problem: str) -> None:
    experiments = [experiment for _, experiment in BOTH]
    if not problem:
        check_fields(fields, experiments)
        return
    with pytest.raises(ExperimentError, match=problem):
        check_fields(fields, experiments)


def test_an_ambiguous_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"calls 'sgd' 2 times"):
        check_fields([RATE], [small('mean() | sgd(0.1) | sgd(1.0)')])


# Proposals.


def test_proposals_find_the_lowest_loss_of_a_parabola() -> None:
    """Twenty trials on (log10 x + 1)^2; a diverged trial counts as the worst."""
    done = [Trial({'sgd.learning_rate': 5.0}, None, 'diverged')]
    for number in range(1, 20):
        values = propose([RATE], done, number)
        assert values == propose([RATE], done, number), 'a function of the trials alone'
        assert RATE.admits(values['sgd.learning_rate'])
        done.append(Trial(values, (1.0 + math.log10(values['sgd.learning_rate'])) ** 2))
    best = done[best_trial(done)].values['sgd.learning_rate']
    assert 0.06 < best < 0.17


def test_proposals_are_near_the_best_trials() -> None:
    """After twenty trials on a grid of three decades; the mean distance of random draws is 0.83 decades."""
    exponents = [-2 + 3 * i / 19 for i in range(20)]
    done = [Trial({'sgd.learning_rate': 10**e}, (e + 1) ** 2) for e in exponents]
    proposed = [propose([RATE], done, number)['sgd.learning_rate'] for number in range(20, 35)]
    assert sum(abs(math.log10(rate) + 1) for rate in proposed) / len(proposed) < 0.5


def test_proposals_of_all_kinds_are_admitted() -> None:
    fields = [RATE, read_field('batch=int(2, 5)'), read_field("a=choice('x', None)"), read_field('b=uniform(0.0, 1.0)')]
    done = [Trial({'sgd.learning_rate': 0.1, 'batch': 3, 'a': None, 'b': 1.0}, 1.0)]
    for number in range(1, 12):
        values = propose(fields, done, number)
        assert all(field.admits(values[field.name]) for field in fields)
        done.append(Trial(values, 1.0))
    assert {trial.values['a'] for trial in done} == {'x', None}


# Trials.


def run_all(compared: list[Variant], folder: Path, trials: int = 3, stop_after: int | None = None) -> list[str]:
    seen: list[str] = []
    stop = lambda: stop_after is not None and len(seen) >= stop_after  # noqa: E731
    for name, _, event in tune(compared, [RATE], trials, 1, folder, stop=stop):
        seen.append(f'{name} {event.kind}')
    return seen


@pytest.mark.slow
def test_each_variant_has_its_trials_and_a_stopped_one_resumes_with_the_same(tmp_path: Path) -> None:
    run_all(BOTH, tmp_path / 'a')
    whole = [read_trials(tmp_path / 'a', experiment) for _, experiment in BOTH]
    assert [len(trials) for trials in whole] == [3, 3]
    assert [trials[0].values for trials in whole] == [{'sgd.learning_rate': 0.02}] * 2
    assert whole[0][1].values == whole[1][1].values, 'the same draws at first'
    run_all(BOTH, tmp_path / 'b', stop_after=7)
    assert sum(len(read_trials(tmp_path / 'b', experiment)) for _, experiment in BOTH) < 6
    run_all(BOTH, tmp_path / 'b')
    assert [read_trials(tmp_path / 'b', experiment) for _, experiment in BOTH] == whole
    assert run_all(BOTH, tmp_path / 'b') == []
    with pytest.raises(ExperimentError, match=r"are over \['sgd.learning_rate'\], not over \['sgd.momentum'\]"):
        list(tune(BOTH, [read_field('sgd.momentum=uniform(0.0, 0.9)')], 4, 1, tmp_path / 'b'))
    for (name, base), best, trials in zip(BOTH, best_variants(BOTH, 1, tmp_path / 'a'), whole, strict=True):
        assert best.name == f'{name}, best of 3 trials'
        expected = base if best_trial(trials) == 0 else replaced(base, trials[best_trial(trials)].values)
        assert best.experiment == dataclasses.replace(expected, seed=1), 'with a seed that no trial has had'


@pytest.mark.slow
def test_a_trial_that_diverges_or_does_not_fit_is_kept_with_its_reason(tmp_path: Path) -> None:
    compared = variants([small('mean() | sgd(1e38)', simulate=True, steps=3)])
    for _ in tune(compared, [read_field('batch=choice(3, 5, 7)')], 3, 1, tmp_path):
        pass
    first, *others = read_trials(tmp_path, compared[0].experiment)
    assert (first.loss, first.reason) == (None, 'diverged')
    assert all('cannot be divided among' in trial.reason for trial in others)
    assert best_variants(compared, 1, tmp_path)[0].experiment.batch == compared[0].experiment.batch
    with pytest.raises(ExperimentError, match='no trial has ended with a loss'):
        best_trial([first, *others])


SPACE = CONFIG + "\n\ndef space():\n    return {'sgd.learning_rate': 'log(0.01, 1.0)'}\n"


@pytest.mark.slow
def test_the_command_compares_each_variant_at_its_best(jaxdist: Jaxdist) -> None:
    Path('small.py').write_text(SPACE)
    words = ['tune', 'small.py', '--simulate', '--steps', '2', '--trials', '2']
    words += ['--update', 'mean() | sgd(0.1)', '--update', 'sgd(0.1) | average(every=2)']
    code, out, err = jaxdist(*words)
    assert (code, err) == (0, '')
    table = Path('runs/tune-small/table.md').read_text()
    assert table.count(', best of 2 trials') >= 2
    rows = list(csv.DictReader(Path('runs/tune-small/trials.csv').read_text().splitlines()))
    assert [(row['trial'], row['reason']) for row in rows] == [('1', ''), ('2', '')] * 2
    assert 'trials.csv' in out
    assert re.search(r'trial 2 of 2: loss \d\.\d{4}  sgd\.learning_rate=0\.\d+\n', out)
    again = jaxdist(*words).out
    assert 'step 2' not in again, 'nothing is run again'
    assert 'trial' not in again.partition('┏')[0]


@pytest.mark.slow
def test_processes_have_the_fields_of_their_variants(jaxdist: Jaxdist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*next(iter(PLAIN.items())))
    words = ['tune', 'small.py', '--simulate', '--steps', '1', '--trials', '1', '--jobs', '2']
    words += ['--update', 'mean() | sgd(0.1)', '--update', 'mean() | adam(0.1)']
    words += ['--over', 'sgd.learning_rate=log(0.1, 1.0)', '--over', 'adam.b1=uniform(0.0, 0.9)']
    code, _, err = jaxdist(*words)
    assert (code, err) == (0, '')
    rows = list(csv.DictReader(Path('runs/tune-small/trials.csv').read_text().splitlines()))
    assert [(row['sgd.learning_rate'], row['adam.b1']) for row in rows] == [('0.1', ''), ('', '')]


def test_bad_calls_are_answered(jaxdist: Jaxdist) -> None:
    words = ['tune', 'small.py', '--update', 'mean() | sgd(0.1)']
    assert 'there is nothing to tune: name fields' in jaxdist(*words).err
    assert "no variant has 'adam.b1'" in jaxdist(*words, '--over', 'adam.b1=uniform(0.0, 0.9)').err
    assert "sgd has no keyword 'lr'" in jaxdist(*words, '--over', 'sgd.lr=log(0.1, 1.0)').err
    assert 'trials=0 and seeds=1 must be 1 or more' in (
        jaxdist(*words, '--trials', '0', '--over', 'sgd.learning_rate=log(0.1, 1.0)').err
    )
    Path('small.py').write_text(CONFIG + '\n\ndef space():\n    return 3\n')
    assert 'space() must return a dict of texts' in jaxdist(*words).err


def test_without_optuna_no_trial_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(ImportError, match=r"pip install 'jaxdist\[tune\]'"):
        next(tune(BOTH, [RATE], 1, 1, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_alone_has_no_trials(tmp_path: Path) -> None:
    assert read_trials(tmp_path, Experiment()) == []
