"""Constrained runs: their records, best states and verdicts, and the experiments that they refuse."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from run_fixtures import CONFIG, SMALL, Jaxdist, finish, losses, saved, train_until

from jaxdist.constraints import Constraint, inequality
from jaxdist.constraints.penalties import current
from jaxdist.core import registry
from jaxdist.line import LineError
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.constraint_monitor import ConstraintMonitor
from jaxdist.training.diverged import Diverged
from jaxdist.training.experiment import ConstraintSettings, Experiment, ExperimentError, Mesh, from_json, to_json
from jaxdist.training.run_folder import read_records
from jaxdist.training.train import first_state, prepare

pytestmark = pytest.mark.slow
NORM = "squared_norm(bound=2.0, path='.*kernel')"
CONTROLLED = {'dual': 'nupi(ki=0.1, kp=0.1)', 'penalty': 'growing(start=0.01)'}


def at_least(bound: float) -> Constraint:
    """The squared norm of the kernels is at least a bound."""
    return inequality('at_least', lambda p: -sum(jnp.sum(x**2) for x in jax.tree.leaves(p)), bound=-bound)


def nowhere() -> Constraint:
    """A constraint whose value is NaN."""
    return inequality('nowhere', lambda p: jnp.log(-sum(jnp.sum(x**2) for x in jax.tree.leaves(p))))


def not_one() -> int:
    """No constraint at all."""
    return 3


def empty_rate() -> Constraint:
    """A rate over no example."""
    return inequality('empty_rate', lambda p, b: (jnp.zeros(()), jnp.zeros(())), over='ratio', bound=1.0)


@pytest.fixture(autouse=True)
def named() -> Iterator[None]:
    """Registers the constraints of this file for the duration of a test."""
    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):
        for make in (at_least, nowhere, not_one, empty_rate):
            registry.constraint(paper='none', examples={f'{make.__name__}()': ()})(make)
        yield


def constrained(*hold: str, changes: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    constraints = ConstraintSettings(hold=hold, **{'dual': 'sgd(0.05)', **settings})
    fields = {'mesh': Mesh(workers=4, simulate=True), 'constraints': constraints, **(changes or {})}
    return dataclasses.replace(SMALL, **fields)


def test_a_run_records_evaluates_and_gives_verdicts(tmp_path: Path) -> None:
    done = finish(constrained(NORM, 'easy: squared_norm(bound=1e4)', dual='sgd(0.001)'), tmp_path)[-1].value
    records = read_records(tmp_path)
    metrics = [record['constraints'] for record in records if 'constraints' in record]
    assert len(metrics) == 7
    assert set(metrics[0]) == {'squared_norm', 'easy'}
    assert metrics[0]['squared_norm']['multiplier'] == pytest.approx(0.001 * metrics[0]['squared_norm']['value'])
    assert all(one['easy']['multiplier'] == 0 for one in metrics)
    judged = [record['judged'] for record in records if 'judged' in record]
    assert [set(one['training']) for one in judged] == [set(metrics[0])] * 2
    assert judged[-1]['violation'] == pytest.approx(judged[-1]['training']['squared_norm'])
    assert (tmp_path / 'constraints.png').stat().st_size > 1000
    verdicts = json.loads((tmp_path / 'verdict.json').read_text())
    words = 'easy holds: violation 0 <= 0.01; slack 9.98e+03, the bound costs nothing'
    assert verdicts['easy']['words'].startswith(words)
    assert not verdicts['squared_norm']['holds']
    assert done.verdicts['squared_norm'].words == verdicts['squared_norm']['words']
    assert (done.best, (tmp_path / 'best').exists()) == (None, False)


def test_the_best_feasible_state_is_saved(tmp_path: Path) -> None:
    experiment = constrained('squared_norm(bound=1e4)')
    done = finish(experiment, tmp_path)[-1].value
    judged = {record['step']: record['judged'] for record in read_records(tmp_path) if 'judged' in record}
    assert done.best == min(judged, key=lambda step: judged[step]['loss'])
    restored = Checkpoints(tmp_path / 'best', 1).restore(prepare(experiment).program.state)
    assert restored is not None
    assert (restored.step, restored.meta['loss']) == (done.best, judged[done.best]['loss'])


@pytest.mark.parametrize('size, batches', [(512, 3), (16, 64)])
def test_constraints_are_evaluated_over_all_training_examples_or_64_batches(
    tmp_path: Path, size: int, batches: int
) -> None:
    training = prepare(constrained('squared_norm(bound=1e4)', changes={'batch': size}))
    state = first_state(training)
    record = ConstraintMonitor(training, tmp_path).evaluate(1, state)
    drawn = (training.put(training.data.batch(0, step, size, 4)) for step in range(batches))
    sums, counts, _ = zip(*(training.score(state.params, batch) for batch in drawn), strict=True)
    assert record['loss'] == pytest.approx(float(sum(one['loss'] for one in sums) / sum(counts)), rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    experiment = constrained(NORM, 'at_least(bound=1.0)', **CONTROLLED, changes={'mesh': Mesh(workers=4)})
    finish(experiment, tmp_path / 'whole')
    train_until(3, experiment, tmp_path / 'halves')
    rest = finish(experiment, tmp_path / 'halves')
    assert rest[0].value.step == 3
    assert losses(tmp_path / 'halves') == losses(tmp_path / 'whole')
    (_, ours), (_, theirs) = (saved(experiment, tmp_path / name) for name in ('halves', 'whole'))
    assert [leaf.tobytes() for leaf in ours] == [leaf.tobytes() for leaf in theirs]
    halves, whole = (json.loads((tmp_path / name / 'verdict.json').read_text()) for name in ('halves', 'whole'))
    assert halves == whole


def test_multipliers_are_kept_with_another_number_of_workers(tmp_path: Path) -> None:
    whole, moved = tmp_path / 'whole', tmp_path / 'moved'
    finish(constrained(NORM, **CONTROLLED), whole)
    finish(constrained(NORM, **CONTROLLED, changes={'steps': 4}), moved)
    finish(constrained(NORM, **CONTROLLED, changes={'mesh': Mesh(workers=2)}), moved)
    ours, theirs = ([r['constraints'] for r in read_records(folder) if 'constraints' in r] for folder in (moved, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one['squared_norm'] == pytest.approx(other['squared_norm'], rel=1e-4)


def test_contradictory_constraints_get_a_verdict_with_the_evidence(tmp_path: Path) -> None:
    changes = {'steps': 120, 'log_every': 5, 'evaluate_every': 120, 'save_every': 120}
    small, large = 'small: squared_norm(bound=1.0)', 'at_least(bound=9.0)'
    done = finish(constrained(small, large, dual='sgd(0.01)', changes=changes), tmp_path)[-1].value
    for name in ('small', 'at_least'):
        assert not done.verdicts[name].holds
    words = done.verdicts['at_least'].words + done.verdicts['small'].words
    assert 'Infeasible as posed, or contradicted by another constraint' in words, words
    assert 'the multiplier grew from' in words


def test_a_constraint_that_is_nan_ends_the_run_and_is_named(tmp_path: Path) -> None:
    message = 'the value of nowhere, of the constraints, is nan at step 2; it was never finite'
    with pytest.raises(Diverged, match=message):
        finish(constrained('nowhere()'), tmp_path)


def test_a_constraint_without_examples_is_unknown_at_the_end(tmp_path: Path) -> None:
    done = finish(constrained('empty_rate()'), tmp_path)[-1].value
    assert done.verdicts['empty_rate'].words == 'empty_rate is unknown: no example determines its value'
    assert not done.verdicts['empty_rate'].holds
    assert json.loads((tmp_path / 'verdict.json').read_text())['empty_rate']['value'] is None


def test_a_run_of_other_constraints_is_refused(tmp_path: Path) -> None:
    finish(constrained(NORM, changes={'steps': 1}), tmp_path)
    other = constrained('squared_norm(bound=3.0)')
    with pytest.raises(ExperimentError, match=r'(?s)constraints.hold: .*bound=3.0.* given, .*bound=2.0.* saved'):
        finish(other, tmp_path)


@pytest.mark.parametrize(
    'hold, settings, error, message',
    [
        (('squared_nrom(bound=1.0)',), {}, LineError, "did you mean 'squared_norm'"),
        (('squared_norm(limit=1.0)',), {}, LineError, "has no keyword 'limit'"),
        (('sgd(0.1)',), {}, LineError, 'this is not a constraint: write the call of one'),
        (('squared_norm(bound=-1.0)',), {}, LineError, 'bound=-1.0 of squared_norm must be above 0'),
        ((NORM, NORM), {}, ValueError, 'two constraints are called squared_norm: name them, as in squared_norm_2: '),
        ((NORM,), {'dual': 'mean() | sgd(0.1)'}, LineError, 'mean works on gradients or parameters: it belongs in'),
        ((NORM,), {'dual': 'scale(0.1)'}, ValueError, "lowers the multiplier of 'squared_norm'"),
        ((NORM,), {'dual': 'growing(start=1.0)'}, LineError, 'this is of type Growing, not a transformation'),
        ((NORM,), {'penalty': 'growing(start=0.0)'}, LineError, 'needs 0 < start'),
        (
            (NORM,),
            {'dual': 'within(most=1.0) | sgd(0.1)'},
            LineError,
            'within projects .* and sgd moves them again: put within last',
        ),
        (('a b: ' + NORM,), {}, LineError, "'a b' cannot name a constraint"),
        (('not_one()',), {}, ValueError, r'not_one must return a Constraint, .* not 3'),
        ((NORM,), {'penalty': -1.0}, ValueError, r'penalty=-1.0 must be 0 or more'),
        ((NORM,), {'tolerance': -1.0}, ExperimentError, r'tolerance=-1.0 must be 0 or more'),
        (
            ("squared_norm(bound=1.0, path='w')",),
            {},
            ValueError,
            "no parameter has a path like 'w'; they are head/bias",
        ),
        (('demographic_parity()',), {}, LineError, 'in a task of two classes or of values; the model has 10 classes'),
    ],
)
def test_wrong_constraints_are_refused(hold: Any, settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(constrained(*hold, **settings))


def test_dual_transformations_are_refused_in_update_lines() -> None:
    with pytest.raises(LineError, match='nupi moves multipliers: it belongs in the dual line of constraints'):
        prepare(dataclasses.replace(SMALL, update='mean() | nupi(ki=0.1, kp=0.1) | sgd(0.1)'))


def test_a_penalty_is_a_number_or_the_text_of_a_schedule() -> None:
    for penalty, at_5 in ((2.0, 2.0), ('3.0', 3.0), ('linear_schedule(0.0, 1.0, 10)', 0.5)):
        objective: Any = prepare(constrained(NORM, penalty=penalty, dual='MultiSteps(sgd(0.1), 4)')).objective
        assert objective is not None
        assert float(current(objective.penalty, (), jnp.int32(5))) == at_5


def test_the_tolerance_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    finish(constrained(NORM, changes={'steps': 1}), tmp_path)
    outcome = finish(constrained(NORM, tolerance=1e3, changes={'steps': 2}), tmp_path)[-1].value
    assert outcome.verdicts['squared_norm'].holds


def test_constraints_come_back_from_json() -> None:
    experiment = constrained(NORM, 'easy: squared_norm(bound=9.0)', **CONTROLLED)
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


OWN = """
import jax.numpy as jnp
from jaxdist.constraints import inequality
from jaxdist.core.registry import constraint


@constraint(paper='none', examples={'small_head(bound=1.0)': ()})
def small_head(bound: float):
    "The largest weight of the head is bounded."
    return inequality('small_head', lambda params: jnp.abs(params['head']['kernel']).max(), bound=bound)
"""


def test_a_constraint_of_ones_own_on_the_command_line(jaxdist: Jaxdist) -> None:
    Path('own.py').write_text(OWN + CONFIG)
    options = [
        '--constraints.hold',
        'small_head(bound=0.1)',
        '--constraints.dual',
        'sgd(1.0)',
        '--constraints.every',
        '2',
    ]
    code, out, err = jaxdist('train', 'own.py', '--run', 'runs/own', *options)
    assert code == 0, err
    assert 'small_head +' in out
    assert 'constraints do not all hold: small_head +' in out
    assert 'small_head does not hold: ' in out
    assert 'loss.png, constraints.png, verdict.json' in out
    assert json.loads(Path('runs/own/run.json').read_text())['scripts'].keys() == {'own.py'}
    code, out, _ = jaxdist('train', 'runs/own', '--steps', '6', '--script', 'own.py')
    assert (code, 'resuming from step 4' in out) == (0, True)
    code, out, _ = jaxdist('plan', 'own.py', *options)
    assert 'holds       small_head: small_head(bound=0.1)' in out
    code, out, _ = jaxdist('constraints', 'own.py')
    assert 'small_head(bound)' in out
    code, _, err = jaxdist('train', 'own.py', '--constraints.hold', 'small_haed(bound=0.1)')
    assert (code, "did you mean 'small_head'" in err) == (2, True)
