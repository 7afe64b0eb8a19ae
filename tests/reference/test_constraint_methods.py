"""Equivalent methods for constraints agree step by step, and known mistakes of other implementations are absent."""

from collections.abc import Callable, Iterator
from typing import Any

import constraint_fixtures as fixtures
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from constraint_fixtures import FOUR, Problem, Trajectory, train

from jaxdist.constraints import Constraint, Term, augmented_lagrangian, equality, inequality, nupi, quadratic_penalty
from jaxdist.core import mesh
from jaxdist.core.workers import Workers, on_mesh, simulated

pytestmark = pytest.mark.slow

STEPS, CLOSE = 40, 1e-12
RATE = optax.sgd(0.05)
START = np.array([0.5, -0.25, 1.0])
PLACES = pytest.mark.parametrize('workers', [FOUR, on_mesh(mesh.make({'workers': 4}))], ids=['simulated', 'mesh'])


@pytest.fixture(autouse=True)
def _long_floats() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def both(x: jax.Array) -> jax.Array:
    """A norm and a sum."""
    return jnp.stack([x @ x, jnp.sum(x)])


BOUND = np.array([0.4, 0.1])
RNG = np.random.default_rng(1)
ROWS = RNG.normal(size=(12, 3)) * np.repeat([1.5, 1.0, 0.7, 0.2], 3)[:, None]  # of four workers with unlike data
TARGETS = ROWS @ np.array([1.0, 0.5, -0.5]) + 0.3 * RNG.normal(size=12)
DATA = {'x': ROWS, 'y': TARGETS, 'weight': np.ones(12)}


def regression(*constraints: Constraint) -> Problem:
    """A small least squares problem."""
    return Problem(fixtures.squares, START, constraints, DATA)


def fixed_violations(values: Any, weight: Any = (1.0, 1.0, 1.0, 1.0)) -> Problem:
    """A problem whose violations do not depend on the parameters."""
    fixed = inequality('fixed', lambda x: jnp.asarray(values) + 0 * x)
    return Problem(lambda x, batch: 0 * x * batch['weight'].sum(), 0.0, (fixed,), {'weight': np.array(weight)})


EQUAL = regression(equality('both', both, bound=BOUND))
FROM_0 = regression(equality('both', both, bound=both(START)))
"""The violations are 0 at the initial parameters."""
MIXED = regression(
    equality('norm', lambda x: x @ x, bound=0.4),
    inequality('memory', lambda x: x[:2], bound=np.array([0.1, 2.0])),
)


def same(ours: Trajectory, theirs: Trajectory, multipliers: bool = True) -> None:
    """Asserts that two trajectories are equal, and that parameters and multipliers move."""
    np.testing.assert_allclose(ours.params, theirs.params, rtol=0, atol=CLOSE)
    for name in ours.multipliers[0] if multipliers else ():
        mine, other = ([m[name] for m in one.multipliers] for one in (ours, theirs))
        np.testing.assert_allclose(mine, other, rtol=0, atol=CLOSE)
        assert np.ptp(mine, axis=0).min() > 1e-3
    assert np.linalg.norm(ours.params[-1] - ours.params[0]) > 0.1
    assert np.abs(ours.params).max() < 10


# Equivalent methods.


def test_a_pi_controller_is_descent_and_ascent_on_the_augmented_lagrangian() -> None:
    """The parameters are the same (arXiv 2509.22500); the controller's multiplier contains the penalty's part, kp h."""
    controlled = train(EQUAL, STEPS, RATE, nupi(ki=0.1, kp=0.7))
    augmented = train(EQUAL, STEPS, RATE, optax.sgd(0.1), penalty=0.7)
    same(controlled, augmented, multipliers=False)
    for before, one, other in zip(
        controlled.params, controlled.multipliers[1:], augmented.multipliers[1:], strict=False
    ):
        part = 0.7 * (both(before) - BOUND)
        np.testing.assert_allclose(one['both'], other['both'] + part, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    'optimistic',
    [
        optax.optimistic_gradient_descent(0.1, alpha=1.0, beta=4.0),
        optax.chain(optax.scale_by_optimistic_gradient(alpha=0.1, beta=0.4), optax.scale(-1.0)),
    ],
    ids=['descent', 'scale_by'],
)
def test_optimistic_ascent_is_a_pi_controller(optimistic: optax.GradientTransformation) -> None:
    """From violations of 0: as the violation before the first, optax takes the first, and this controller 0."""
    same(train(FROM_0, STEPS, RATE, optimistic), train(FROM_0, STEPS, RATE, nupi(ki=0.1, kp=0.4)))


def test_optimistic_ascent_and_a_pi_controller_differ_in_the_first_step() -> None:
    first = [
        train(EQUAL, 1, RATE, dual).multipliers[1]['both']
        for dual in (nupi(ki=0.1, kp=0.4), optax.optimistic_gradient_descent(0.1, alpha=1.0, beta=4.0))
    ]
    np.testing.assert_allclose(first[0] - first[1], 0.4 * (both(START) - BOUND), rtol=0, atol=CLOSE)


def test_polyak_momentum_is_a_controller_of_negative_gain() -> None:
    a, b = 0.02, 0.8
    momentum = train(EQUAL, STEPS, RATE, optax.sgd(a, momentum=b))
    same(momentum, train(EQUAL, STEPS, RATE, nupi(ki=a / (1 - b), kp=-a * b / (1 - b) ** 2, nu=b)))


def test_a_controller_takes_its_first_three_steps_by_its_formula() -> None:
    at = train(EQUAL, 3, RATE, nupi(ki=0.1, kp=0.5, nu=0.6, kd=0.2))
    multiplier, smooth = np.zeros(2), [np.zeros(2), np.zeros(2)]
    for before, after in zip(at.params, at.multipliers[1:], strict=False):
        violation = np.asarray(both(before)) - BOUND
        smooth.append(0.6 * smooth[-1] + 0.4 * violation)
        multiplier = multiplier + 0.1 * violation + 0.5 * (smooth[-1] - smooth[-2])
        multiplier = multiplier + 0.2 * (smooth[-1] - 2 * smooth[-2] + smooth[-3])
        np.testing.assert_allclose(after['both'], multiplier, rtol=0, atol=CLOSE)


def test_a_quadratic_penalty_is_the_augmented_lagrangian_of_multipliers_0() -> None:
    def penalised(x: jax.Array) -> jax.Array:
        return 1.5 * ((x @ x - 0.4) ** 2 + jnp.sum(jax.nn.relu(x[:2] - np.array([0.1, 2.0])) ** 2))

    free = Problem(lambda x, batch: fixtures.squares(x, batch) + batch['weight'].sum() * penalised(x), START, (), DATA)
    zeros = train(MIXED, STEPS, RATE, optax.set_to_zero(), penalty=3.0)
    same(zeros, train(free, STEPS, RATE), multipliers=False)
    assert all((m == 0).all() for at in zeros.multipliers for m in at.values())
    terms = [Term(c.kind, c.value(c.sums(START, {})), 9.0) for c in MIXED.constraints]
    np.testing.assert_allclose(quadratic_penalty(0.0, terms, 3.0), penalised(START), rtol=1e-14)


# The five steps, as a loop over workers.


def budget(x: jax.Array, batch: Any) -> jax.Array:
    """A sum over a worker's examples."""
    return jnp.sum((batch['x'] @ x) ** 2)


def textbook(steps: int, combine: Callable[[list[float]], float]) -> list[tuple[np.ndarray, float]]:
    """Parameters and multiplier of the problem below, by a loop over four workers."""
    w, multiplier, path = START, 0.0, [(START, 0.0)]
    shards = [(x, y) for x, y in zip(np.split(DATA['x'], 4), np.split(DATA['y'], 4), strict=True)]
    for _ in range(steps):
        values = [np.sum((x @ w) ** 2) - 3.0 / 4 for x, _ in shards]  # the worker's part of the value
        multiplier = combine([multiplier + 0.05 * 4 * g for g in values])  # of the proposals, before projection
        slopes = [4 * x.T @ (x @ w - y) / 12 + multiplier * 4 * 2 * x.T @ (x @ w) for x, y in shards]
        w = w - 0.05 * np.mean(slopes, 0)
        path.append((w, multiplier))
    return path


@PLACES
def test_the_five_steps_are_a_loop_over_workers(workers: Workers) -> None:
    problem = regression(inequality('budget', budget, over='sum', bound=3.0))
    at = train(problem, STEPS, RATE, optax.sgd(0.05), workers)
    path = textbook(STEPS, lambda proposals: max(np.mean(proposals), 0.0))
    np.testing.assert_allclose(at.params, [w for w, _ in path], rtol=0, atol=CLOSE)
    np.testing.assert_allclose([m['budget'] for m in at.multipliers], [m for _, m in path], rtol=0, atol=CLOSE)
    early = textbook(STEPS, lambda proposals: np.mean(np.maximum(proposals, 0.0)))
    assert max(abs(a - b) for (_, a), (_, b) in zip(early, path, strict=True)) > 0.01, (
        'the order of projection makes no difference'
    )


# Mistakes of other implementations.


@PLACES
def test_projection_comes_after_the_all_reduce(workers: Workers) -> None:
    """Proposals of -.3, .2, -.1 and .1 sum to -.1, and to .3 if each is projected first."""
    given = inequality('given', lambda x, batch: batch['given'].sum() + 0 * x, over='sum')
    batch = {'given': np.array([-3.0, 2.0, -1.0, 1.0]), 'weight': np.ones(4)}
    problem = Problem(lambda x, batch: 0 * x * batch['weight'].sum(), 0.0, (given,), batch)
    for values, expected in ((batch['given'], 0.0), (-batch['given'], 0.1)):
        at = train(problem._replace(batch={**batch, 'given': values}), 1, RATE, optax.sgd(0.1), workers)
        np.testing.assert_allclose(at.multipliers[1]['given'], expected, rtol=0, atol=1e-15)


def test_a_rate_is_of_all_workers_examples_and_not_a_mean_of_rates() -> None:
    group = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0])  # the second of four workers has no example of group 1

    def rate(x: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(batch['group'] * (batch['x'] @ x) ** 2), jnp.sum(batch['group'])

    problem = regression(inequality('rate', rate, over='ratio', bound=0.1))._replace(batch={**DATA, 'group': group})
    at = train(problem, 2, RATE, optax.sgd(0.1))
    values = [np.mean((DATA['x'][group == 1] @ x) ** 2) - 0.1 for x in at.params[:2]]
    np.testing.assert_allclose(at.value('rate'), values, rtol=0, atol=CLOSE)
    assert at.multipliers[-1]['rate'] == pytest.approx(0.1 * sum(values), abs=CLOSE)
    local = [np.mean((x[g == 1] @ START) ** 2) for x, g in zip(np.split(DATA['x'], 4), np.split(group, 4)) if g.any()]  # noqa: B905
    assert abs(np.mean(local) - 0.1 - values[0]) > 0.02


def test_a_norm_is_not_summed_over_workers() -> None:
    free = Problem(lambda x, batch: 0 * jnp.sum(x) * batch['weight'].sum(), START, (), fixtures.WEIGHTS_ONLY)
    problem = free._replace(constraints=(inequality('ball', lambda x: x @ x, bound=1.0),))
    for workers in (simulated(1), FOUR, on_mesh(mesh.make({'workers': 4}))):
        at = train(problem, 1, optax.sgd(1.0), optax.sgd(0.1), workers)
        np.testing.assert_allclose(at.multipliers[1]['ball'], 0.1 * (START @ START - 1), rtol=1e-14)
        np.testing.assert_allclose(at.params[1], START - 0.1 * (START @ START - 1) * 2 * START, rtol=1e-14)


def test_the_default_dual_line_is_plain_ascent() -> None:
    """Violations of .3 and 300 give multipliers in that ratio; Adam, which is not the default, gives equal ones."""
    problem = fixed_violations([0.3, 300.0, -5.0])
    plain = train(problem, 7, RATE).multipliers
    np.testing.assert_allclose([m['fixed'] for m in plain], np.outer(np.arange(8), [0.003, 3.0, 0.0]), rtol=1e-14)
    small, large, _ = train(problem, 7, RATE, optax.adam(0.01)).multipliers[-1]['fixed']
    assert small == pytest.approx(large, rel=1e-6)


def test_weight_decay_lets_an_inactive_multiplier_decay() -> None:
    """Only the first step has a violation."""
    fixed = inequality('fixed', lambda x: jnp.where(x < 0.5, 1.0, 0.0))
    problem = Problem(lambda x, batch: -x * batch['weight'].sum(), 0.0, (fixed,), fixtures.WEIGHTS_ONLY)
    decaying = optax.adamw(0.1, b1=0.0, weight_decay=0.5)
    multipliers = [m['fixed'] for m in train(problem, 12, optax.sgd(1.0), decaying).multipliers]
    np.testing.assert_allclose(multipliers, [0.0, *(0.1 * 0.95 ** np.arange(12))], rtol=1e-6)


@pytest.mark.parametrize('multiplier', [0.0, 0.5])
def test_the_augmented_lagrangian_has_gradients_at_penalty_0(multiplier: float) -> None:
    """By the parameter and by the multipliers."""

    def value(x: Any, multipliers: Any, penalty: Any) -> jax.Array:
        return augmented_lagrangian(x**2, [Term('inequality', jnp.stack([x, 2 * x, x - 1]), multipliers)], penalty)

    slopes, own = jax.grad(value, (0, 1)), np.full(3, multiplier)
    for by_parameter, by_multipliers in (slopes(0.0, own, 0.0), jax.jit(slopes)(0.0, own, 0.0)):
        np.testing.assert_allclose(by_parameter, 4 * multiplier, rtol=1e-15)
        np.testing.assert_array_equal(by_multipliers, [0.0, 0.0, -1.0])
    np.testing.assert_allclose(jax.jit(slopes)(0.0, own, 1e-9)[0], 4 * multiplier, rtol=1e-8)


def test_a_penalty_schedule_that_starts_at_0_starts_as_the_lagrangian() -> None:
    rising = train(MIXED, 3, RATE, optax.sgd(0.1), penalty=lambda steps: jnp.maximum(steps - 1.0, 0.0))
    plain = train(MIXED, 3, RATE, optax.sgd(0.1))
    assert np.isfinite(rising.params).all()
    np.testing.assert_array_equal(rising.params[:3], plain.params[:3])
    assert (rising.params[3] != plain.params[3]).all()
