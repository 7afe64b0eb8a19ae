"""Constraints and dual lines that do not fit raise errors before anything is compiled."""

from pathlib import Path
from typing import Any

import jax
import optax
import pytest
from constrained_step_fixtures import BALL, EVERY, SMALL, SMALL_EACH, program

from jaxdist import average
from jaxdist.constraints import LagrangianObjective, equality, inequality, linear, nupi, within
from jaxdist.training.checkpoint import CheckpointError, Checkpoints


@pytest.mark.parametrize(
    'measure, fields, message',
    [
        (lambda p, b: b['x'], {}, r"called as measure\(params\), for over='none', and cannot be; over='mean' calls it"),
        (lambda p: p['w'], {'over': 'mean'}, r'called as measure\(params, batch\)'),
        (
            lambda p, b: b['x'].sum(),
            {'over': 'mean'},
            r'a value for each example, \[B, ...\] of 2 examples here .*returns \(\)',
        ),
        (lambda p, b: b['x'], {'over': 'example'}, r'a value for each example, \[B\] of 2 .* returns \(2, 3\)'),
        (lambda p, b: b['x'].sum(), {'over': 'ratio'}, r'\(numerator, denominator\), two arrays .* returns \(\)'),
        (lambda p, b: (b['x'].sum(), b['x'].sum(0)), {'over': 'ratio'}, r'of one shape, .* returns \(\), \(3,\)'),
        (lambda p: 1j * p['w'], {}, 'complex numbers, which have no order'),
        (lambda p: p['w'], {'over': 'max'}, "over='max' of 'bad' must be one of none, sum, mean, ratio, example"),
        (lambda p: p['w'], {'per_worker': True}, "bounds the sum, mean or ratio of each worker; over='none' has none"),
        (lambda p, b: b['y'], {'over': 'mean', 'rows': 3}, "rows are for over='example', not 'mean'"),
        (
            lambda p, b: b['y'],
            {'over': 'example', 'rows': 3},
            r'rows=3 examples of a worker, and the batch has no `row`',
        ),
    ],
)
def test_a_measure_that_does_not_fit_is_refused(measure: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(inequality('bad', measure, **fields))


@pytest.mark.parametrize(
    'constraints, settings, message',
    [
        ((BALL, BALL), {}, r"different names: \['ball'\] name several"),
        ((BALL,), {'dual': optax.scale(0.1)}, "lowers the multiplier of 'ball' when that is violated by 1"),
        ((BALL,), {'ascent': {'order': 'both'}}, "order='both' must be one of alternating, simultaneous"),
        ((BALL,), {'ascent': {'every': 0}}, 'every=0 must be 1 or more'),
        ((BALL,), {'ascent': {'penalty': -1.0}}, r'penalty=-1.0 must be 0 or more'),
        ((EVERY,), {'accumulate': 2}, 'needs a batch that each worker processes whole, and not in 2 parts'),
        (
            (BALL, SMALL_EACH),
            {'dual': optax.chain(optax.sgd(0.1), within(radius=1.0))},
            "multiplier of 'ball' must be replicated, and would vary over workers: a transformation",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(constraints: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(*constraints, **settings)


def test_workers_that_diverge_are_refused() -> None:
    local = optax.chain(optax.sgd(0.1), average(every=2))
    with pytest.raises(
        ValueError,
        match=r'ball, small: constraints are evaluated at replicated parameters, .* this update lets workers diverge',
    ):
        program(BALL, SMALL, update=local)


def test_no_constraints_and_names_that_are_no_identifiers_are_refused() -> None:
    with pytest.raises(ValueError, match=r'different names: there are none'):
        LagrangianObjective(())
    with pytest.raises(ValueError, match=r"'a b' cannot name a constraint"):
        inequality('a b', lambda p: p)


def test_arguments_of_a_wrong_type_or_not_finite_are_refused() -> None:
    with pytest.raises(TypeError, match=r'constraints come in a tuple, as in LagrangianObjective\(\(ball,\)'):
        LagrangianObjective(BALL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dual='sgd\(0.1\)' must be an optax transformation"):
        LagrangianObjective((BALL,), 'sgd(0.1)')  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"penalty='1.0' must be a number, a schedule or growing"):
        LagrangianObjective((BALL,), penalty='1.0')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bound=nan of 'far' must be finite"):
        inequality('far', lambda p: p, bound=float('nan'))


def test_equalities_need_multipliers_of_both_signs() -> None:
    with pytest.raises(ValueError, match="'even' is an equality, and needs multipliers of both signs"):
        equality('even', lambda p, b: b['y'], over='example', multiplier=linear(lambda b: b['x'], 3))


@pytest.mark.parametrize('numbers', [{'nu': 1.0}, {'ki': -1.0}, {'ki': 0.0, 'kp': 0.0}])
def test_a_controller_that_cannot_work_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match='nupi'):
        nupi(**{'ki': 0.1, 'kp': 0.1, **numbers})


def test_a_checkpoint_of_other_constraints_is_refused(tmp_path: Path) -> None:
    ours, theirs = program(BALL), program(SMALL)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, ours.init(jax.random.key(0)), {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match='ball'):
            checkpoints.restore(theirs.state)
