"""Consensus ADMM: its solutions, its published iterates and properties, its stopping rule and its messages."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets, linear_model

from jaxdist import ledger
from jaxdist.codecs.int8 import int8
from jaxdist.constraints.solvers.consensus_admm import Balance, ConsensusState, by_steps, consensus_admm, least_squares
from jaxdist.constraints.solvers.iteration import Iteration, Outcome, Residuals, program, run
from jaxdist.constraints.solvers.proximal import soft_threshold
from jaxdist.core import mesh
from jaxdist.core.workers import Workers, on_mesh, simulated

pytestmark = pytest.mark.slow

FOUR, BALANCED = simulated(4), {'balance': Balance()}
ALPHA, EXACT = 5.0, (1e-13, 0.0)
OPTIMIZERS = [optax.sgd(0.5, momentum=0.5), pytest.param(optax.lbfgs(1.0, linesearch=None), marks=pytest.mark.slow)]


def mesh_of(count: int) -> Workers:
    return on_mesh(mesh.make({'workers': count}))


@pytest.fixture(autouse=True)
def _long_floats() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Standardised features [442, 10], centred targets [442]."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y - y.mean()


(X, Y), N = diabetes(), 442


def split(parts: list[int]) -> dict[str, np.ndarray]:
    """The given number of rows for each worker, padded with rows of weight 0 and of large numbers."""
    most, at = max(parts), np.cumsum([0, *parts])
    blocks = [range(a, b) for a, b in pairwise(at)]
    fill = lambda z: np.concatenate([np.concatenate([z[b], 1e3 + z[: most - len(b)]]) for b in blocks])  # noqa: E731
    weight = np.concatenate([np.arange(most) < n for n in parts]).astype(float)
    return {'x': fill(X), 'y': fill(Y), 'weight': weight}


def evenly(count: int) -> dict[str, np.ndarray]:
    return split([N // count + (i < N % count) for i in range(count)])


def lasso_admm(**settings: Any) -> Iteration:
    """Consensus ADMM on the lasso; by default to a tight tolerance."""
    defaults = {'rho': 0.2, 'prox': soft_threshold(ALPHA), 'tolerances': EXACT}
    return consensus_admm(least_squares(1 / N), **{**defaults, **settings})


def solved(most: int = 1000, start: Any = None, data: Any = None, **settings: Any) -> Outcome:
    """The lasso by four workers."""
    start, data = (np.zeros(10) if start is None else start), (evenly(4) if data is None else data)
    return run(lasso_admm(**settings), start, data, FOUR, most)


def lasso() -> np.ndarray:
    return linear_model.Lasso(ALPHA, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(X, Y).coef_


def path(method: Iteration, start: Any, data: Any, workers: Workers, steps: int) -> list[tuple[Any, Residuals]]:
    """The states and residuals of the first `steps` iterations."""
    compiled, iterates = program(method, start, data, workers), []
    state = compiled.init(start)
    for _ in range(steps):
        state, residuals = compiled.step(state, data)
        iterates.append(jax.device_get((state, Residuals(*(x[0] for x in residuals)))))
    return iterates


def near(actual: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize('parts', [[111, 111, 110, 110], [200, 150, 91, 1]], ids=['even', 'uneven'])
def test_the_lasso_is_scikit_learns(parts: list[int]) -> None:
    """The sum of the workers' multipliers is a subgradient of the 1-norm: alpha on the support, smaller elsewhere."""
    outcome = solved(data=split(parts))
    state, expected = outcome.state, lasso()
    assert outcome.converged
    near(state.z, expected, 1e-12)
    near(state.x, np.tile(expected, (4, 1)), 1e-11)
    total = np.asarray(state.rho * state.u.sum(0))
    near(total[expected != 0], ALPHA * np.sign(expected[expected != 0]), 1e-11)
    assert np.abs(total[expected == 0]).max() < ALPHA
    assert 0 < (expected == 0).sum() < 10


@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_any_number_of_workers_reaches_the_same_solution(count: int) -> None:
    outcome = run(lasso_admm(tolerances=(1e-12, 0.0)), np.zeros(10), evenly(count), mesh_of(count))
    near(outcome.state.z, lasso(), 1e-10)


def test_simulated_workers_have_the_iterates_of_a_mesh() -> None:
    for method in (lasso_admm(rho=2.0, relax=1.6, balance=Balance()), lasso_admm(prox=None)):
        both = [path(method, np.zeros(10), evenly(4), workers, 12) for workers in (FOUR, mesh_of(4))]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), *both)


@pytest.mark.parametrize('settings', [{'relax': 1.6}, {'relax': 0.7}, BALANCED, {'rho': 0.01, 'relax': 1.6} | BALANCED])
def test_relaxed_and_balanced_it_reaches_the_same_solution(settings: dict[str, Any]) -> None:
    outcome = solved(**settings)
    assert outcome.converged
    near(outcome.state.z, lasso(), 1e-10)


def test_relaxation_and_balancing_save_iterations() -> None:
    """Balancing does from a rho that is far too large."""
    assert len(solved(relax=1.6).history.small) < 0.75 * len(solved().history.small)
    assert not solved(500, rho=50.0).converged
    balanced = solved(500, rho=50.0, balance=Balance())
    assert balanced.converged
    near(balanced.state.z, lasso(), 1e-10)


@pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=['sgd', 'lbfgs'])
def test_with_optimiser_steps_it_reaches_the_same_solution(optimizer: optax.GradientTransformation) -> None:
    """On a mesh, for parameters in several leaves: with an intercept, on targets that need one."""
    data = {'x': X[:40], 'y': Y[:40] + 7}
    plain = np.linalg.lstsq(np.c_[X[:40], np.ones(40)], data['y'], rcond=None)[0]

    def objective(model: Any, part: Any) -> jax.Array:
        return jnp.sum((part['x'] @ model['w'] + model['b'] - part['y']) ** 2) / 80

    method = consensus_admm(by_steps(objective, optimizer, 40), rho=0.3, relax=1.7, tolerances=(1e-9, 0.0))
    z = run(method, {'w': np.zeros(10), 'b': np.zeros(())}, data, mesh_of(4), most=3000).state.z
    near(np.append(z['w'], z['b']), plain, 1e-5)


@pytest.mark.parametrize('rows, weighted', [(3, False), (3, True), (12, False), (12, True)])
def test_least_squares_solves_its_problem(rows: int, weighted: bool) -> None:
    """With fewer rows than columns, and more; with several targets. The gradient at the solution is 0."""
    rng = np.random.default_rng(rows)
    part = {'x': rng.normal(size=(rows, 5)), 'y': rng.normal(size=(rows, 2))}
    weight = rng.uniform(size=rows) if weighted else np.ones(rows)
    part, v = part | ({'weight': weight} if weighted else {}), rng.normal(size=(5, 2))
    w = least_squares(0.3)(jnp.array(v), jnp.array(0.7), part, None)
    gradient = 0.3 * part['x'].T @ (weight[:, None] * (part['x'] @ w - part['y'])) + 0.7 * (w - v)
    near(gradient, 0, 1e-13)


def by_hand(steps: int, rho: float, relax: float) -> list[tuple[Any, Residuals]]:
    """The lasso on two workers in NumPy, from the formulas of Boyd et al.; tolerances 1e-4 and 1e-2."""
    halves, z, iterates = [slice(0, 221), slice(221, 442)], np.zeros(10), []
    x, u = np.zeros((2, 10)), np.zeros((2, 10))
    for _ in range(steps):
        for i, h in enumerate(halves):
            x[i] = np.linalg.solve(X[h].T @ X[h] / N + rho * np.eye(10), X[h].T @ Y[h] / N + rho * (z - u[i]))
        relaxed, old = relax * x + (1 - relax) * z, z
        mean = (relaxed + u).mean(0)
        z = np.sign(mean) * np.maximum(np.abs(mean) - ALPHA / (2 * rho), 0)
        u = u + relaxed - z
        norm = np.linalg.norm
        primal, dual = norm(x - z), rho * norm(np.tile(z - old, (2, 1)))
        limits = [20**0.5 * 1e-4 + 1e-2 * size for size in (max(norm(x), norm(np.tile(z, (2, 1)))), rho * norm(u))]
        iterates.append(((x.copy(), u.copy(), z), Residuals(primal, dual, *limits)))
    return iterates


@pytest.mark.parametrize('relax', [1.0, 1.7])
def test_it_has_the_iterates_of_plain_numpy(relax: float) -> None:
    ours = path(lasso_admm(rho=0.3, relax=relax, tolerances=(1e-4, 1e-2)), np.zeros(10), evenly(2), mesh_of(2), 8)
    for (state, residuals), (variables, expected) in zip(ours, by_hand(8, 0.3, relax), strict=True):
        for actual, right in zip((state.x, state.u, state.z), variables, strict=True):
            near(actual, right, 1e-11)
        np.testing.assert_allclose(residuals, expected, rtol=1e-10)


def test_it_stops_at_the_first_iteration_within_the_tolerances_or_after_the_last() -> None:
    history = solved(tolerances=(1e-4, 1e-2)).history
    assert list(history.small) == [False] * (len(history.small) - 1) + [True]
    assert len(history.small) > 5
    stopped = solved(3)
    assert (stopped.converged, len(stopped.history.small)) == (False, 3)


def test_the_published_example_takes_about_fifteen_iterations() -> None:
    """Boyd et al. section 11.1 takes 15 on other random data of the same sizes, with one worker as here."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1500, 5000))
    a /= np.linalg.norm(a, axis=0)
    sparse = np.zeros(5000)
    sparse[rng.choice(5000, 100, replace=False)] = rng.normal(size=100)
    b = a @ sparse + np.sqrt(1e-3) * rng.normal(size=1500)

    def solve(v: Any, rho: Any, part: Any, x: Any) -> Any:  # rho is 1, and the system is factored once
        right = part['x'].T @ part['y'] + v
        return right - part['x'].T @ jax.scipy.linalg.cho_solve((part['factor'], True), part['x'] @ right)

    data = {'x': a, 'y': b, 'factor': np.linalg.cholesky(a @ a.T + np.eye(1500))}
    prox = soft_threshold(0.1 * np.abs(a.T @ b).max())
    outcome = run(consensus_admm(solve, prox=prox), np.zeros(5000), data, simulated(1))
    assert outcome.converged
    assert 10 <= len(outcome.history.small) <= 20


def lyapunov(state: ConsensusState, end: ConsensusState) -> float:
    """|y - y*|^2 / rho + rho |B (z - z*)|^2 (Boyd et al. appendix A)."""
    u, z = state.u - np.asarray(end.u), state.z - np.asarray(end.z)
    return float(state.rho * (np.sum(u**2) + 4 * np.sum(z**2)))


@pytest.mark.parametrize('rho', [0.02, 0.2, 5.0])
def test_the_lyapunov_function_never_rises(rho: float) -> None:
    """In each iteration it falls by at least rho (|r|^2 + |B dz|^2)."""
    end = solved().state
    end = end._replace(u=end.u * end.rho / rho)
    iterates = path(lasso_admm(rho=rho), np.zeros(10), evenly(4), FOUR, 60)
    values = np.array([lyapunov(state, end) for state, _ in iterates])
    decrease = np.array([rho * residuals.primal**2 + residuals.dual**2 / rho for _, residuals in iterates])
    assert np.all(values[1:] <= values[:-1] - decrease[1:] + 1e-9 * values[0])
    assert values[-1] < 0.8 * values[0]


def test_a_residual_may_rise() -> None:
    """The last test is not trivial: a residual is not monotone where the Lyapunov function is."""
    assert np.any(np.diff(solved(60, rho=5.0).history.primal) > 0.1)


@pytest.mark.parametrize('relax', [1.0, 1.5])
def test_without_a_regulariser_the_multipliers_sum_to_0(relax: float) -> None:
    for state, _ in path(lasso_admm(prox=None, relax=relax), np.zeros(10), evenly(4), FOUR, 30):
        near(state.u.sum(0), 0, 1e-11)
        assert np.abs(state.u).max() > 1


def test_a_change_of_rho_keeps_the_multipliers() -> None:
    """Their sum is a subgradient of the regulariser in every iteration, while rho changes and after."""
    iterates = path(lasso_admm(rho=50.0, balance=Balance(until=3)), np.zeros(10), evenly(4), FOUR, 12)
    rhos = [float(state.rho) for state, _ in iterates]
    assert rhos == [25, 12.5, 6.25] + [6.25] * 9
    for state, residuals in iterates:
        total = state.rho * state.u.sum(0)
        near(total[state.z != 0], ALPHA * np.sign(state.z[state.z != 0]), 1e-10)
        assert np.abs(total).max() <= ALPHA + 1e-10
        assert np.isfinite(residuals).all()


def test_one_model_and_three_scalars_are_sent() -> None:
    data = evenly(4)
    compiled = program(lasso_admm(balance=Balance(), relax=1.5), jnp.zeros(10), data, mesh_of(4))
    sent = ledger.totals(ledger.traced(compiled.run, {'workers': 4}, compiled.state, data))
    assert sum(sent.values()) == Fraction(2 * 3, 4) * 8 * (10 + 3)


def test_with_int8_and_ef21_it_comes_near_the_solution() -> None:
    outcome = solved(codec=int8(block=10), feedback='ef21', tolerances=(1e-4, 0.0))
    assert outcome.converged
    near(outcome.state.z, lasso(), 1e-2)


def small(solve: Any) -> Outcome:
    return run(consensus_admm(solve), np.zeros(2), np.zeros(4), FOUR)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    'rho': (lambda: lasso_admm(rho=0.0), 'rho=0.0 must be more than 0'),
    'relax': (lambda: lasso_admm(relax=2.0), 'relax=2.0 must be between 0 and 2'),
    'balance': (lambda: lasso_admm(balance=Balance(factor=1.0)), 'factor above 1'),
    'tolerances': (lambda: lasso_admm(tolerances=(1e-4, -1.0)), 'must be two numbers, 0 or more'),
    'feedback': (lambda: solved(feedback=True), 'needs a codec'),
    'structure': (lambda: small(lambda v, rho, part, x: {'w': v}), "returns {'w': 'float64"),
    'dtype': (lambda: small(lambda v, rho, part, x: v.astype(jnp.float32)), r'float32\(2,\), and start is'),
    'scale': (lambda: least_squares(0.0), 'scale=0.0 must be more than 0'),
    'steps': (lambda: by_steps(lambda x, part: x, optax.sgd(1.0), 0), 'steps=0 must be 1 or more'),
    'rows': (lambda: solved(data={'x': X, 'y': Y}), r"data\['x'\] has shape \(442, 10\), .* multiple of 4"),
    'data': (lambda: solved(data={'y': np.full(4, np.nan)}), r"data\['y'\] has 4 numbers that are not finite"),
    'start': (lambda: solved(start=np.full(10, np.inf)), 'start has 10 numbers'),
    'most': (lambda: solved(most=0), 'most=0 must be 1'),
}


@pytest.mark.parametrize('call, message', REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_solver_that_returns_nan_stops_the_run() -> None:
    broken = lambda v, rho, part, x: v / (jnp.sum(part) - jnp.sum(part))  # noqa: E731
    with pytest.raises(FloatingPointError, match=r'iteration 1 of at most 1000 .*primal nan'):
        run(consensus_admm(broken), np.ones(2), np.ones(4), FOUR)
