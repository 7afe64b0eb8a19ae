"""Constrained problems with known solutions, solved by four workers to the last digit of the reference values."""

import functools
from collections.abc import Iterator
from typing import Any

import constraint_fixtures as fixtures
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from constraint_fixtures import FOUR, Problem, Trajectory, newton, of_parameters, residual, train

from jaxdist.constraints import duality_gap, equality, inequality, nupi, scale_by_penalty
from jaxdist.core import mesh
from jaxdist.core.workers import Workers, on_mesh

pytestmark = pytest.mark.slow

ON_MESH = on_mesh(mesh.make({'workers': 4}))
PLACES = pytest.mark.parametrize('workers', [FOUR, ON_MESH], ids=['simulated', 'mesh'])
HESTENES: dict[str, Any] = {'dual': optax.chain(scale_by_penalty(), optax.sgd(1.0)), 'order': 'primal_first'}
"""The method of multipliers: exact minimisation, then a step of the multipliers by the penalty."""


@pytest.fixture(autouse=True)
def _long_floats() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def check(problem: Problem, at: Trajectory, params: Any = None, close: float = 1e-10, **multipliers: Any) -> None:
    """Asserts the final parameters and multipliers, and that the Karush-Kuhn-Tucker conditions hold there."""
    if params is not None:
        np.testing.assert_allclose(at.params[-1], params, rtol=0, atol=close)
    for name, expected in multipliers.items():
        np.testing.assert_allclose(at.multipliers[-1][name], expected, rtol=0, atol=close)
    assert residual(problem, at) < 1e-7


# Solutions by hand.


def test_the_point_of_a_straight_line_nearest_to_0() -> None:
    line = of_parameters(lambda x: x @ x, [3.0, -1.0], equality('line', jnp.sum, bound=1.0))
    check(line, train(line, 150, optax.sgd(0.2), optax.sgd(0.3)), [0.5, 0.5], line=-1.0)


def test_the_lowest_point_of_a_circle() -> None:
    circle = of_parameters(jnp.sum, [0.5, -1.0], equality('circle', lambda x: x @ x, bound=2.0))
    at = train(circle, 300, optax.sgd(0.1), optax.sgd(0.2), penalty=0.5)
    check(circle, at, [-1.0, -1.0], circle=0.5)


def test_the_multiplier_is_0_for_an_inactive_constraint_and_exact_for_an_active_one() -> None:
    bounds = np.array([0.5, 3.0])
    corner = of_parameters(lambda x: jnp.sum((x - 1) ** 2), [0.0, 5.0], inequality('box', lambda x: x, bound=bounds))
    check(corner, train(corner, 200, optax.sgd(0.2), optax.sgd(0.5)), [0.5, 1.0], box=[1.0, 0.0])


def test_the_method_of_multipliers_takes_the_steps_worked_out_by_hand() -> None:
    """Minimises |x|^2 / 2 subject to x0 = 1, exactly, under penalties 1, 1, 2, 4, 4."""
    penalties = np.array([1.0, 1.0, 2.0, 4.0, 4.0])
    first = of_parameters(lambda x: 0.5 * x @ x, [-3.0, 2.0], equality('first', lambda x: x[0], bound=1.0))
    exactly = newton(lambda x, step: jnp.diag(jnp.stack([1 / (1 + jnp.asarray(penalties)[step]), jnp.ones(())])))
    at = train(first, 5, exactly, **HESTENES, penalty=lambda steps: jnp.asarray(penalties)[steps])
    np.testing.assert_allclose([x[0] for x in at.params[1:]], [1 / 2, 3 / 4, 11 / 12, 59 / 60, 299 / 300], rtol=1e-14)
    np.testing.assert_allclose([x[1] for x in at.params[1:]], 0, atol=1e-15)
    np.testing.assert_allclose(
        at.multipliers[-1]['first'], -299 / 300, rtol=1e-14
    )  # -x0: the Lagrangian's gradient is 0


def test_the_maximum_entropy_of_a_die_with_mean_4_and_a_half() -> None:
    sides = np.arange(1.0, 7.0)
    a, penalty = np.stack([np.ones(6), sides]), 10.0
    known = equality('known', lambda p: a @ p, bound=np.array([1.0, 4.5]))
    die = of_parameters(lambda p: jnp.sum(p * jnp.log(p)), [1 / 6] * 6, known)
    exactly = newton(lambda p, step: jnp.linalg.inv(jnp.diag(1 / p) + penalty * a.T @ a))
    at = train(die, 60, exactly, **HESTENES, penalty=penalty)
    printed = [0.0543531678, 0.0787715456, 0.1141599772, 0.1654468031, 0.2397744404, 0.3474940658]
    np.testing.assert_allclose(at.params[-1], printed, rtol=0, atol=5.1e-11)
    np.testing.assert_allclose(-die.objective(at.params[-1]), 1.6135810982, rtol=0, atol=5.1e-11)
    check(die, at)
    # p = exp(-1 - m1 - m2 side): the multipliers determine the solution.
    np.testing.assert_allclose(np.exp(-1 - at.multipliers[-1]['known'] @ a), printed, rtol=0, atol=5.1e-11)


@PLACES
def test_a_quadratic_programme_equals_one_linear_solve(workers: Workers) -> None:
    rng = np.random.default_rng(0)
    x, y, a, b = rng.normal(size=(16, 5)), rng.normal(size=16), rng.normal(size=(2, 5)), rng.normal(size=2)
    batch = {'x': x, 'y': y, 'weight': rng.uniform(0.5, 2.0, 16)}
    problem = Problem(fixtures.squares, np.zeros(5), (equality('plane', lambda w: a @ w, bound=b),), batch)
    h = fixtures.hessian(problem)
    right = (x.T * batch['weight']) @ y / batch['weight'].sum()
    solved = np.linalg.solve(np.block([[h, a.T], [a, np.zeros((2, 2))]]), np.concatenate([right, b]))
    inverse = np.linalg.inv(h + 10.0 * a.T @ a)
    at = train(problem, 60, newton(lambda w, step: inverse), **HESTENES, penalty=10.0, workers=workers)
    check(problem, at, solved[:5], 1e-12, plane=solved[5:])


# Growth around the saddle point of L = m x, for f = 0 and h(x) = x.

SADDLE = of_parameters(lambda x: 0.0 * x, 1.0, equality('zero', lambda x: x))
STEP = 0.3


def around(order: str, line: optax.GradientTransformation = optax.sgd(STEP)) -> np.ndarray:
    """The points (x, m) [2, T + 1]."""
    at = train(SADDLE, 100, line, line, order=order)
    return np.stack([at.params, [m['zero'] for m in at.multipliers]])


@pytest.mark.parametrize(
    'order, growth', [('simultaneous', np.sqrt(1 + STEP**2)), ('extragradient', np.sqrt(1 - STEP**2 + STEP**4))]
)
def test_the_distance_to_a_saddle_point_changes_by_a_known_factor_per_step(order: str, growth: float) -> None:
    radius = np.hypot(*around(order))
    np.testing.assert_allclose(radius[1:] / radius[:-1], growth, rtol=1e-13)


@pytest.mark.parametrize('order, sign', [('alternating', 1), ('primal_first', -1)])
def test_alternating_orders_stay_on_an_ellipse_around_a_saddle_point(order: str, sign: int) -> None:
    """x^2 + m^2 + s x m is constant, or with -s where the parameters move first."""
    x, m = around(order)
    np.testing.assert_allclose(x**2 + m**2 + sign * STEP * x * m, 1, rtol=1e-13)
    radius = np.hypot(x, m)
    assert (radius[-1] / radius[0]) ** (1 / 100) == pytest.approx(1, abs=2e-3)
    assert x.min() < -0.9 < 0.9 < x.max()


def test_optimistic_steps_converge_to_a_saddle_point() -> None:
    radius = np.hypot(*around('simultaneous', optax.optimistic_gradient_descent(STEP)))
    growth = np.sqrt((1 + np.sqrt(1 - 4 * STEP**2)) / 2)  # of z' = z + i s (2 z - last z), where z = x + i m
    assert growth < 0.95
    np.testing.assert_allclose(radius[41:] / radius[40:-1], growth, rtol=1e-12)


# Real data.

CANCER = {1.0: (0.06610533384, 0.14836196905), 4.0: (0.00805263638, 0.08140009275)}
FAST = optax.sgd(0.5, momentum=0.95, nesterov=True)
CONTROLLED = nupi(0.02, 0.1)


@functools.cache
def in_ball(dual: optax.GradientTransformation) -> Trajectory:
    """Logistic regression subject to |w|^2 <= 1, by plain descent and a dual line."""
    return train(fixtures.breast_cancer(1.0), 600, optax.sgd(0.5), dual)


@pytest.mark.parametrize('bound', CANCER)
def test_logistic_regression_in_a_ball(bound: float) -> None:
    problem = fixtures.breast_cancer(bound)
    assert problem.batch['weight'].sum() == 569
    at = train(problem, 1500, FAST, nupi(0.01, 0.1))
    multiplier, objective = CANCER[bound]
    np.testing.assert_allclose(problem.objective(at.params[-1]), objective, rtol=0, atol=5.1e-12)
    check(problem, at, close=5.1e-12, ball=multiplier)


def test_the_duality_gap_is_0_at_the_solution_and_bounds_the_error_at_other_points() -> None:
    problem, at, best = fixtures.breast_cancer(1.0), in_ball(CONTROLLED), CANCER[1.0][1]

    @jax.jit
    def gap(params: Any, m: Any) -> jax.Array:
        least = lambda f: fixtures.minimum(f, at.params[-1], 12)  # noqa: E731
        return duality_gap(problem.objective, problem.constraints, params, {'ball': m}, problem.batch, least)

    end, m = at.params[-1], at.multipliers[-1]['ball']
    assert gap(end, m) == pytest.approx(0, abs=1e-9)
    for params, other in ((0.9 * end, 2 * m), (end, 0.5 * m)):
        assert gap(params, other) > max(float(problem.objective(params)) - best, 1e-3)


def exactly(problem: Problem, part: float = 1.0) -> optax.GradientTransformation:
    """Newton steps, or a fraction of them, of a mean of squares: its features are far from independent."""
    inverse = part * np.linalg.inv(fixtures.hessian(problem))
    return newton(lambda w, step: inverse)


def test_least_squares_with_equal_means_of_two_groups() -> None:
    problem = fixtures.diabetes(fixtures.SAME)
    at = train(problem, 60, exactly(problem), optax.sgd(0.2), order='primal_first')
    check(problem, at, close=5.1e-10, gap=1.654680494)
    np.testing.assert_allclose(problem.objective(at.params[-1]), 1435.34617, rtol=0, atol=5.1e-6)


@PLACES
def test_least_squares_with_means_of_two_groups_that_differ_by_at_most_5(workers: Workers) -> None:
    problem = fixtures.diabetes(fixtures.near(5.0))
    at = train(problem, 60, exactly(problem), optax.sgd(0.2), workers, order='primal_first')
    check(problem, at, close=5.1e-10, demographic_parity=[0.409696771, 0.0])
    np.testing.assert_allclose(problem.objective(at.params[-1]), 1430.18523, rtol=0, atol=5.1e-6)
    total, size = fixtures.group_means(at.params[-1], problem.batch)
    np.testing.assert_allclose(np.diff(total / size), 5.0, rtol=0, atol=1e-9)


# Problems by construction: choose a multiplier, minimise the Lagrangian, and take the value there as the bound.


def test_the_multiplier_of_a_ball_is_the_one_that_its_bound_was_computed_for() -> None:
    chosen = 0.03
    free = fixtures.breast_cancer(1.0)
    best = fixtures.minimum(lambda w: free.objective(w) + chosen * jnp.sum(w[:-1] ** 2), free.start)
    problem = fixtures.breast_cancer(float(jnp.sum(best[:-1] ** 2)))
    check(problem, train(problem, 1500, FAST, nupi(0.01, 0.1)), best, 1e-9, ball=chosen)


def test_the_multiplier_of_a_groups_error_is_the_one_that_its_bound_was_computed_for() -> None:
    """The constraint is half the mean squared error of one group, a ratio of sums."""

    def error(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        inside = batch['weight'] * batch['group']
        return 0.5 * jnp.sum(inside * (batch['x'] @ params - batch['y']) ** 2), inside.sum()

    chosen, free = 0.32, fixtures.diabetes()
    total: Any = lambda w: jnp.divide(*error(w, free.batch))  # noqa: E731
    best = fixtures.minimum(lambda w: free.objective(w) + chosen * total(w), free.start, 3)
    start = np.asarray(fixtures.minimum(free.objective, free.start, 3))
    problem = fixtures.diabetes(inequality('error', error, over='ratio', bound=float(total(best))))._replace(
        start=start
    )
    check(problem, train(problem, 120, exactly(problem, 0.5), optax.sgd(0.005)), best, 1e-9, error=chosen)


# Oscillation. The nuPI paper's gain is a multiple of the rate: its Kp = 5 at rate .02 is kp = .1 here.


def overshoot(dual: optax.GradientTransformation) -> tuple[float, int, float]:
    """The largest excess of |w|^2 over its bound, the number of stretches of one sign, and the final distance."""
    value = in_ball(dual).value('ball')
    signs = np.sign(value[np.abs(value) > 1e-9])
    return value.max(), 1 + np.count_nonzero(np.diff(signs)), np.abs(value[-100:]).max()


@pytest.mark.parametrize(
    'dual, most, stretches', [(optax.sgd(0.02), 0.488, 7), (CONTROLLED, 0.0077, 3)], ids=['plain', 'controlled']
)
def test_a_controller_overshoots_less(dual: optax.GradientTransformation, most: float, stretches: int) -> None:
    excess, count, distance = overshoot(dual)
    assert excess == pytest.approx(most, abs=0.00005 if most < 0.1 else 0.0005)
    assert count == stretches
    assert distance < 1e-7


@pytest.mark.parametrize('dual', [nupi(0.02, 1.0), optax.sgd(0.02, momentum=0.9)], ids=['large gain', 'momentum'])
def test_a_too_large_gain_and_momentum_never_converge(dual: optax.GradientTransformation) -> None:
    _, count, distance = overshoot(dual)
    assert count > 20
    assert distance > 0.1
