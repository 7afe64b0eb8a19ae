"""Splitting methods with A sharded by rows, dual decomposition, proximal operators, and FedADMM in training."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets, linear_model

from jaxdist import ledger, line
from jaxdist.constraints.solvers import proximal
from jaxdist.constraints.solvers.dual_decomposition import dual_decomposition
from jaxdist.constraints.solvers.iteration import Iteration, program, run
from jaxdist.constraints.solvers.linearized_admm import linearized_admm
from jaxdist.constraints.solvers.primal_dual import norm, primal_dual
from jaxdist.constraints.solvers.proximal import PartProx, Prox, soft_threshold, squared_error
from jaxdist.core import mesh
from jaxdist.core.workers import Workers, on_mesh, simulated
from jaxdist.training.step import make_step

pytestmark = pytest.mark.slow
FOUR, MESH = simulated(4), on_mesh(mesh.make({'workers': 4}))
X, Y = datasets.load_diabetes(return_X_y=True)
X, Y = np.pad((X - X.mean(0)) / X.std(0), ((0, 6), (0, 0))), np.pad(Y - Y.mean(), (0, 6))  # 6 rows of zeros
ALPHA, N, SIZE, DATA = 5.0, 442, float(np.linalg.norm(X, 2)), {'x': X, 'y': Y}
PROX: tuple[Prox, PartProx] = soft_threshold(ALPHA), squared_error(1 / N)


@pytest.fixture(autouse=True)
def _long_floats() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def near(actual: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def path(method: Iteration, start: Any, data: Any, workers: Workers, steps: int) -> list[tuple[Any, Any]]:
    """The states and residuals of the first `steps` iterations."""
    compiled, iterates = program(method, start, data, workers), []
    state = compiled.init(start)
    for _ in range(steps):
        state, residuals = compiled.step(state, data)
        iterates.append(jax.device_get((state, [x[0] for x in residuals])))
    return iterates


def pdhg(tau: float = 0.4, sigma: float = 0.99 / (0.4 * SIZE**2), tolerances: Any = (1e-12, 0.0)) -> Iteration:
    return primal_dual(*PROX, tau=tau, sigma=sigma, norm=SIZE, tolerances=tolerances)


def linearized(scale: float = 1000.0, tolerances: Any = (1e-12, 0.0)) -> Iteration:
    return linearized_admm(*PROX, mu=scale / SIZE**2, scale=scale, norm=SIZE, tolerances=tolerances)


EACH = pytest.mark.parametrize('method', [pdhg, linearized])


@EACH
def test_the_lasso_is_scikit_learns(method: Callable[[], Iteration]) -> None:
    outcome = run(method(), np.zeros(10), DATA, FOUR, most=3000)
    plain = linear_model.Lasso(ALPHA, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(X[:N], Y[:N]).coef_
    assert outcome.converged
    near(outcome.state.x, plain, 1e-10)


@EACH
def test_the_iterates_do_not_depend_on_the_number_of_workers(method: Callable[[], Iteration]) -> None:
    """They are the same on a mesh and for simulated workers, too."""
    start = np.linspace(-20, 20, 10)
    first, *others = [path(method(), start, DATA, workers, 12) for workers in (simulated(1), simulated(2), FOUR, MESH)]
    for other in others:
        for (state, residuals), (expected, expected_residuals) in zip(first, other, strict=True):
            near(state.x, expected.x, 1e-10)
            np.testing.assert_allclose(residuals, expected_residuals, rtol=1e-9)


def shrunk(v: np.ndarray, by: float) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - by, 0)


def residuals_by_hand(x: np.ndarray, z: np.ndarray, dual: np.ndarray, y: np.ndarray) -> list[float]:
    """The residuals, with tolerances 1e-4 and 1e-2; y is the multiplier of A x = z."""
    size = np.linalg.norm
    primal = 448**0.5 * 1e-4 + 1e-2 * max(size(X @ x), size(z))
    return [size(X @ x - z), size(dual), primal, 10**0.5 * 1e-4 + 1e-2 * size(X.T @ y)]


def pdhg_by_hand(x: np.ndarray, steps: int, tau: float, sigma: float) -> list[Any]:
    """Chambolle and Pock's algorithm 1, with g* written out: N / 2 |y|^2 + y . Y."""
    y, extrapolated, iterates = np.zeros(448), x, []
    for _ in range(steps):
        y_old, x_old, image = y, x, X @ extrapolated
        y = (y + sigma * (image - Y)) / (1 + sigma * N)
        x = shrunk(x - tau * X.T @ y, tau * ALPHA)
        extrapolated = 2 * x - x_old
        iterates.append((x, residuals_by_hand(x, image - (y - y_old) / sigma, (x - x_old) / tau, y)))
    return iterates


def linearized_by_hand(x: np.ndarray, steps: int, mu: float, scale: float) -> list[Any]:
    """Parikh and Boyd's formulas; the dual residual from a subgradient of f at x."""
    z, u, iterates = X @ x, np.zeros(448), []
    for _ in range(steps):
        into = x - mu / scale * X.T @ (X @ x - z + u)
        x = shrunk(into, mu * ALPHA)
        z = (X @ x + u + scale / N * Y) / (1 + scale / N)
        u = u + X @ x - z
        iterates.append((x, residuals_by_hand(x, z, (into - x) / mu + X.T @ u / scale, u / scale)))
    return iterates


def test_they_have_the_iterates_of_plain_numpy() -> None:
    start, tolerances = np.linspace(-20, 20, 10), (1e-4, 1e-2)
    by_pdhg = pdhg(0.4, 1e-3, tolerances), pdhg_by_hand(start, 8, 0.4, 1e-3)
    by_admm = linearized(300.0, tolerances), linearized_by_hand(start, 8, 300 / SIZE**2, 300.0)
    for method, hand in (by_pdhg, by_admm):
        for (state, residuals), (x, expected) in zip(path(method, start, DATA, FOUR, 8), hand, strict=True):
            near(state.x, x, 1e-10)
            np.testing.assert_allclose(residuals, expected, rtol=1e-9)


def basis_pursuit(factor: float) -> Any:
    """Minimises |x|_1 subject to A x = b, with tau sigma |A|^2 = factor; returns the outcome and the solution."""
    rng = np.random.default_rng(3)
    a, sparse = rng.normal(size=(24, 40)), np.zeros(40)
    sparse[[3, 17, 30]] = [2.0, -1.0, 0.5]
    step, on_b = factor**0.5 / np.linalg.norm(a, 2), lambda v, step, part: part['y']
    method = primal_dual(soft_threshold(1.0), on_b, tau=step, sigma=step, tolerances=(1e-11, 0.0))
    return run(method, np.ones(40), {'x': a, 'y': a @ sparse}, FOUR, most=20000), sparse


def test_primal_dual_converges_below_its_step_bound_and_diverges_above() -> None:
    outcome, sparse = basis_pursuit(0.98)
    near(outcome.state.x, sparse, 1e-9)
    with pytest.raises(FloatingPointError, match='residuals that are not finite'):
        basis_pursuit(4.0)


def test_x_may_be_a_pytree_and_a_any_linear_function() -> None:
    """Least squares with an intercept equals least squares with a column of ones."""
    multiply = lambda model, part: part['x'] @ model['w'] + model['b']  # noqa: E731
    start, data = {'w': np.zeros(4), 'b': np.zeros(())}, {'x': X[:440, :4], 'y': Y[:440] + 7}
    matrix = np.c_[data['x'], np.ones(440)]
    size = norm({'w': np.ones(4), 'b': np.ones(())}, data, MESH, multiply)
    assert size == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-9)
    settings = {'mu': 440 / size**2, 'scale': 440.0, 'multiply': multiply, 'tolerances': (1e-9, 0.0)}
    x = run(linearized_admm(lambda v, step: v, squared_error(1 / 440), **settings), start, data, MESH).state.x
    near(np.append(x['w'], x['b']), np.linalg.lstsq(matrix, data['y'], rcond=None)[0], 1e-6)


def test_the_norm_is_estimated_from_below() -> None:
    for workers in (simulated(1), FOUR, MESH):
        estimate = norm(np.ones(10), DATA, workers)
        assert SIZE * (1 - 1e-9) <= estimate <= SIZE * (1 + 1e-12)
    with pytest.raises(ValueError, match='not found to 1e-06 in 3 iterations'):
        norm(np.ones(10), DATA, FOUR, most=3)


USES = np.random.default_rng(5).normal(size=(4, 2, 3))
SUPPLY = np.array([1.0, -2.0])
HESSIANS = np.stack([np.diag([1.0, 2.0, 4.0]) + 0.3 * i for i in range(4)])
COUPLED = {'p': HESSIANS, 'q': np.outer([1, 2, 3, 4], [-1, 0, 1.0]), 'a': USES}
"""Each of four workers minimises 1/2 x' P x + q' x, and uses the amount A x."""


def respond(price: Any, part: Any, x: Any) -> Any:
    return -jnp.linalg.solve(part['p'][0], part['q'][0] + part['a'][0].T @ price)


def coupled(**settings: Any) -> Iteration:
    amount, defaults = (lambda x, part: part['a'][0] @ x), {'tolerances': (1e-12, 0.0)}
    return dual_decomposition(respond, amount, SUPPLY, optax.sgd(0.15), **{**defaults, **settings})


def kkt(active: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The decisions [4, 3] and the prices [2] where these rows hold with equality, by one linear system."""
    matrix, right = np.zeros((14, 14)), np.concatenate([-COUPLED['q'].ravel(), SUPPLY])
    for i in range(4):
        at = slice(3 * i, 3 * i + 3)
        matrix[at, at], matrix[at, 12:], matrix[12:, at] = COUPLED['p'][i], USES[i].T, USES[i]
    kept = [*range(12), *(12 + row for row in active)]
    solution = np.zeros(14)
    solution[kept] = np.linalg.solve(matrix[np.ix_(kept, kept)], right[kept])
    return solution[:12].reshape(4, 3), solution[12:]


@pytest.mark.parametrize('workers', [FOUR, MESH], ids=['simulated', 'mesh'])
@pytest.mark.parametrize('kind, active', [('equality', [0, 1]), ('inequality', [1])])
def test_prices_are_those_of_the_linear_system(kind: str, active: list[int], workers: Workers) -> None:
    """Prices of inequalities are 0 or more; the inactive row would have a negative price as an equality."""
    outcome = run(coupled(kind=kind), np.zeros(3), COUPLED, workers, most=3000)
    x, price = kkt(active)
    assert outcome.converged
    near(outcome.state.x, x, 1e-9)
    near(outcome.state.price, price, 1e-9)
    assert kkt([0, 1])[1][0] < 0 < kkt([1])[1][1]


def test_prices_send_two_numbers_and_splitting_by_rows_one_x_and_three_scalars() -> None:
    sent = []
    for method, data, entries in ((coupled(), COUPLED, 3), (pdhg(), DATA, 10), (linearized(), DATA, 10)):
        compiled = program(method, np.zeros(entries), data, MESH)
        sent.append(sum(ledger.totals(ledger.traced(compiled.run, {'workers': 4}, compiled.state, data)).values()))
    assert sent == [Fraction(2 * 3, 4) * 8 * numbers for numbers in (2, 13, 13)]


WEIGHED: Prox = lambda v, step: squared_error(0.6)(v, step, {'y': 2.0, 'weight': 3.0})  # noqa: E731
VALUES = {
    'soft_threshold': (proximal.soft_threshold(0.7), lambda x: 0.7 * np.abs(x).sum()),
    'group_shrinkage': (proximal.group_shrinkage(1.2), lambda x: 1.2 * np.linalg.norm(x, axis=-1).sum()),
    'box': (proximal.box(-0.3, 0.4), lambda x: 0.0 if ((x >= -0.3) & (x <= 0.4)).all() else np.inf),
    'non_negative': (proximal.non_negative(), lambda x: 0.0 if (x >= 0).all() else np.inf),
    'ball': (proximal.ball(0.9), lambda x: 0.0 if np.linalg.norm(x) <= 0.9 + 1e-12 else np.inf),
    'squared_error': (WEIGHED, lambda x: 0.9 * ((x - 2) ** 2).sum()),
}


@pytest.mark.parametrize('prox, g', VALUES.values(), ids=VALUES)
def test_no_other_point_is_better_than_the_proximal_point(prox: Prox, g: Callable[[Any], float]) -> None:
    rng = np.random.default_rng(0)
    for step in (0.3, 2.0, 5.0):
        v = rng.normal(size=(3, 4))
        x = np.asarray(prox(jnp.array(v), step))
        least = step * g(x) + 0.5 * np.sum((x - v) ** 2)
        others = [x + 10.0 ** rng.uniform(-4, 0) * rng.normal(size=(3, 4)) for _ in range(200)]
        others += [x * (rng.uniform(size=(3, 4)) > 0.3), x * 0.99, x * 1.01]
        assert np.isfinite(least)
        assert all(step * g(o) + 0.5 * np.sum((o - v) ** 2) >= least - 1e-12 for o in others)


def test_proximal_operators_take_pytrees() -> None:
    v = {'a': jnp.array([-2.0, 2.0]), 'b': jnp.array(0.5)}
    near(proximal.soft_threshold(1.0)(v, 1.0)['a'], [-1, 1], 0)
    near(proximal.group_shrinkage(1.0)(v, 0.25)['b'], 0.25, 0)
    near(proximal.box(v, 5.0)({'a': jnp.full(2, -9.0), 'b': jnp.array(9.0)}, 1.0)['a'], v['a'], 0)
    near(proximal.ball(1.0)(v, 1.0)['a'], np.array([-2, 2]) / 8.25**0.5, 1e-15)


def federated(text: str, steps: int = 400, nan: bool = False) -> tuple[Any, float]:
    """Least squares with unlike data on four workers: the last state, and its largest distance from the optimum."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4, 6, 3)), rng.normal(size=(4, 6)) + 3 * np.arange(4)[:, None]
    x *= 1 + np.arange(4)[:, None, None]
    best = np.linalg.lstsq(x.reshape(-1, 3), y.ravel(), rcond=None)[0]
    loss = lambda w, b, key: ({'loss': jnp.sum((b['x'] @ w - b['y']) ** 2)}, b['y'].size)  # noqa: E731
    batch = {'x': x.reshape(-1, 3), 'y': y.ravel()}
    bad = batch | {'y': np.where(np.arange(24) < 6, np.nan, batch['y'])}
    program = make_step(loss, lambda key: jnp.zeros(3), line.build(text), batch, FOUR)
    state = program.init(jax.random.key(0))
    for t in range(steps):
        state, _ = program.step(state, bad if nan and t == 1 else batch)
    return state, float(np.abs(np.asarray(state.params) - best).max())


def test_fed_admm_reaches_the_optimum_where_averaging_does_not() -> None:
    """With eight local steps per round; after convergence the multipliers sum to 0, and are not 0."""
    assert federated('sgd(0.01) | average(every=8)')[1] > 1e-2
    state, distance = federated('fed_admm(every=8, optimizer=sgd(0.01), rho=20.0)', 4000)
    assert distance < 1e-9
    near(state.opt_state.own.dual.sum(0), 0, 1e-9)
    assert np.abs(state.opt_state.own.dual).max() > 0.1


def test_fed_admm_with_int8_reaches_the_optimum_too() -> None:
    text = 'fed_admm(every=8, optimizer=sgd(0.01), rho=20.0, codec=int8(block=3), feedback=True)'
    assert federated(text, 4000)[1] < 1e-5


def test_a_worker_without_a_finite_gradient_skips_the_step() -> None:
    text = 'fed_admm(every=4, optimizer=sgd(0.01, momentum=0.9), rho=1.0)'
    (one, _), (other, _) = federated(text, 1), federated(text, 2, nan=True)
    near(other.params[0], one.params[0], 0)
    assert np.all(np.asarray(other.params[1:] != one.params[1:]))
    jax.tree.map(lambda a, b: near(a[0], b[0], 0), one.opt_state.own.inner, other.opt_state.own.inner)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    'steps': (lambda: pdhg(1.0, 1.0), r'\|A\|\^2 = .* must be less than 1.* must be less than 0.00056'),
    'mu': (lambda: linearized_admm(*PROX, mu=1.0, norm=2.0), r'mu=1.0 must be at most scale / norm\^2 = 0.25'),
    'scale': (lambda: linearized(0.0), 'mu=0.0 must be more than 0'),
    'kind': (lambda: coupled(kind='equal'), "kind='equal' must be 'equality' or 'inequality'"),
    'dual': (lambda: dual_decomposition(respond, respond, 0.0, 0.1), 'dual is of type float'),
    'weight': (lambda: soft_threshold(-1.0), 'weight=-1.0 must be 0 or more'),
    'radius': (lambda: proximal.ball(0.0), 'radius=0.0 must be more than 0'),
    'rho': (lambda: line.build('fed_admm(every=2, optimizer=sgd(0.1), rho=0.0)'), 'rho=0.0 must be more than 0'),
    'optimizer': (lambda: line.build('fed_admm(every=2, optimizer=0.1)'), 'optimizer is of type float'),
}


@pytest.mark.parametrize('call, message', REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
