"""The NumPy reference of constrained training: gradients against finite differences, steps against ones by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy_problems as problems
import pytest
from numpy_constraints import (
    Constraint,
    Growing,
    Nupi,
    Reference,
    Restart,
    ScaleByPenalty,
    Sgd,
    Within,
    onto_ball,
    pad,
)


def given(w: np.ndarray, shard: Any) -> tuple[np.ndarray, np.ndarray]:
    """A measure whose values [m] are in the batch."""
    return shard['given'][0], np.zeros((shard['given'].shape[1], len(w)))


def train(values: Sequence[Any], kind: str = 'inequality', **settings: Any) -> Any:
    """The trajectory of a constant w, where the violations of step t are values[t]."""
    batches = [
        [{'x': np.ones((1, 1)), 'y': np.ones(1), 'given': np.array(value, float).reshape(1, -1)}] for value in values
    ]
    reference = Reference(problems.squares, {'given': Constraint(given, 'sum', kind)}, rate=0.0, **settings)
    return reference.train(np.zeros(1), batches)


@pytest.mark.parametrize('name', problems.PROBLEMS)
@pytest.mark.parametrize('penalty', [0.0, 3.0])
@pytest.mark.parametrize('weighted', [False, True])
def test_gradients_by_hand_are_those_of_finite_differences(name: str, penalty: float, weighted: bool) -> None:
    for sizes in [(17,), (7, 4, 6)]:
        batch = problems.shards(sizes, weighted=weighted)
        assert problems.error(problems.PROBLEMS[name], batch, penalty) < 1e-6


@pytest.mark.parametrize('kind, second', [('inequality', 0.0), ('equality', -0.725)])
def test_nupi_takes_the_steps_worked_out_by_hand(kind: str, second: float) -> None:
    path = train([1, -2], kind, dual=[Nupi(ki=0.1, kp=0.5, nu=0.5, kd=0.2)])
    assert np.allclose(path.multipliers['given'][:, 0], [0, 0.45, second])


def test_a_penalty_grows_where_the_violation_did_not_shrink_enough() -> None:
    path = train([2, 1.5, 0.5, 1, -3], penalty=Growing(1.0, 3.0, 0.5, 4.0))
    assert np.array_equal(path.penalty, [1, 1, 3, 3, 4, 4])


def test_a_growing_penalty_sees_both_signs_of_an_equality() -> None:
    assert np.array_equal(train([1, -2], 'equality', penalty=Growing(1.0, 3.0, 0.5, 4.0)).penalty, [1, 1, 3])


@pytest.mark.parametrize('kind, sign', [('inequality', 1), ('equality', -1)])
def test_within_clips_and_then_projects(kind: str, sign: int) -> None:
    path = train([(5 * sign, 2), (-10 * sign, 1)], kind, dual=[Sgd(1.0), Within(3.0, 4.0)])
    after = [0, 2.5] if kind == 'inequality' else [2.25, 1.75]
    assert np.allclose(path.multipliers['given'], [[0, 0], [2.5 * sign, 1.5], after])


def test_the_projection_is_the_nearest_of_many_points_of_the_ball() -> None:
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=3)
    near = onto_ball(z, 2.0)
    inside = rng.normal(size=(10_000, 3))
    inside *= 2 * rng.uniform(size=(10_000, 1)) / np.abs(inside).sum(1, keepdims=True)
    assert np.isclose(np.abs(near).sum(), 2)
    assert np.linalg.norm(inside - z, axis=1).min() >= np.linalg.norm(near - z)


def test_steps_of_momentum_restart_and_penalty_are_those_worked_out_by_hand() -> None:
    assert np.allclose(train([1, 1, -1], dual=[Sgd(0.1, 0.5)]).multipliers['given'][:, 0], [0, 0.1, 0.25, 0.225])
    assert np.allclose(train([1, 0, -0.1], dual=[Sgd(1.0), Restart()]).multipliers['given'][:, 0], [0, 1, 1, 0])
    scaled = train([1, 1, 1], dual=[Sgd(1.0), ScaleByPenalty()], penalty=lambda taken: 2.0**taken, every=2)
    assert np.allclose(scaled.multipliers['given'][:, 0], [0, 1, 1, 3])
    assert np.array_equal(scaled.penalty, [1, 2, 2, 4])


@pytest.mark.parametrize(
    'order, w, multiplier',
    [
        ('alternating', 1.5, 2.0),
        ('simultaneous', 2.5, 2.0),
        ('primal_first', 2.5, 1.5),
        ('extragradient', 1.75, 1.5),
    ],
)
def test_each_order_takes_the_step_worked_out_by_hand(order: str, w: float, multiplier: float) -> None:
    above = Constraint(problems.weights_sum, 'none', bound=1.0)
    reference = Reference(problems.squares, {'above': above}, [Sgd(1.0)], rate=0.5, order=order)
    path = reference.train(np.array([3.0]), [[{'x': np.ones((1, 1)), 'y': np.full(1, 2.0)}]])
    assert np.allclose([path.params[1, 0], path.multipliers['above'][1]], [w, multiplier])


@pytest.mark.parametrize('order, stepped', [('alternating', [1, 0, 0, 1]), ('primal_first', [0, 0, 1, 0])])
def test_every_third_step_is_a_dual_step(order: str, stepped: list[int]) -> None:
    path = train([1] * 4, order=order, every=3, dual=[Sgd(1.0)])
    assert np.array_equal(path.stepped, stepped)
    assert np.array_equal(np.diff(path.multipliers['given'][:, 0]), stepped)


def test_the_split_of_examples_over_workers_does_not_change_replicated_values() -> None:
    whole = problems.shards((7, 4, 6), weighted=True)
    one = [{name: np.concatenate([shard[name] for shard in whole]) for name in whole[0]}]
    for name in ('rate gap', 'mean residual', 'own weights', 'budget', 'two vectors'):
        problem = problems.PROBLEMS[name]
        reference = Reference(problem.loss, problem.references, penalty=1.0)
        many, single = (reference.train(problem.start, [batch] * 5) for batch in (whole, one))
        assert np.allclose(many.params, single.params, rtol=0, atol=1e-12)


def test_workers_without_examples_of_a_group_feed_nothing() -> None:
    problem = problems.PROBLEMS['each worker and group']
    path = Reference(problem.loss, problem.references).train(problem.start, [problems.shards()] * 3)
    assert np.all(path.violations['rates'][:, 2, 1] == 0)
    assert np.all(path.violations['rates'][:, 2, 0] != 0)


def test_examples_that_are_not_in_the_batch_keep_their_multipliers_and_momentum() -> None:
    whole = problems.shards((4, 2))
    problem = problems.PROBLEMS['each example']
    half = [{name: array[:2] for name, array in shard.items()} for shard in whole]
    reference = Reference(problem.loss, problem.references, [Sgd(0.1, 0.9)], rate=0.0)
    path = reference.train(problem.start, [whole, half, half, whole])
    away = path.multipliers['residual'][:, 0, 2:]
    fed = path.violations['residual'][0, 0, 2:]
    assert path.multipliers['residual'].shape == (5, 2, 4)
    assert np.all(path.multipliers['residual'][:, 1, 2:] == 0)
    assert np.allclose(away[1:4], np.maximum(0.1 * fed, 0))
    assert np.allclose(away[4], np.maximum(away[3] + 0.1 * 1.9 * fed, 0))


def test_padding_makes_equal_shares_and_weighs_nothing() -> None:
    batch = pad(problems.shards((3, 1), weighted=True))
    assert batch['x'].shape == (6, 4)
    assert np.array_equal(batch['weight'] > 0, [1, 1, 1, 1, 0, 0])
    some = pad(problems.minibatches(problems.shards((4, 2)), take=3, steps=1)[0])
    assert sorted(some['index'][3:]) == [0, 1, 2]
