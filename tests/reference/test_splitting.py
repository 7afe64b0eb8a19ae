"""Splitting by rows, prices for what is shared, proximal operators, and multipliers in training."""

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
from jaxdist.core import mesh, workers
from jaxdist.training.step import make_step

pytestmark = pytest.mark.slow
FOUR, MESH = workers.simulated(4), workers.on_mesh(mesh.make({'workers': 4}))
X, Y = datasets.load_diabetes(return_X_y=True)
X, Y = np.pad((X - X.mean(0)) / X.std(0), ((0, 6), (0, 0))), np.pad(Y - Y.mean(), (0, 6))  # 6 rows of zeros
ALPHA, N, SIZE, DATA = 5.0, 442, float(np.linalg.norm(X, 2)), {'x': X, 'y': Y}
PROX: tuple[Prox, PartProx] = soft_threshold(ALPHA), squared_error(1 / N)


@pytest.fixture(autouse=True)
def _long_floats() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def near(seen: Any, promised: Any, tolerance: float) -> None:
    np.testing.assert_allclose(seen, promised, rtol=0, atol=tolerance)


def path(method: Iteration, start: Any, data: Any, where: workers.Workers, steps: int) -> list[tuple[Any, Any]]:
    """The states and residuals of so many iterations."""
    made, seen = program(method, start, data, where), []
    state = made.init(start)
    for _ in range(steps):
        state, told = made.step(state, data)
        seen.append(jax.device_get((state, [x[0] for x in told])))
    return seen


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
def test_the_way_does_not_depend_on_the_number_of_workers(method: Callable[[], Iteration]) -> None:
    """Nor on whether they are simulated."""
    start = np.linspace(-20, 20, 10)
    ways = [
        path(method(), start, DATA, where, 12) for where in (workers.simulated(1), workers.simulated(2), FOUR, MESH)
    ]
    for other in ways[1:]:
        for (state, told), (there, promised) in zip(ways[0], other, strict=True):
            near(state.x, there.x, 1e-10)
            np.testing.assert_allclose(told, promised, rtol=1e-9)


def shrunk(v: np.ndarray, by: float) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - by, 0)


def told_by_hand(x: np.ndarray, z: np.ndarray, off: np.ndarray, y: np.ndarray) -> list[float]:
    """The residuals, with tolerances 1e-4 and 1e-2; y is the multiplier of A x = z."""
    size = np.linalg.norm
    primal = 448**0.5 * 1e-4 + 1e-2 * max(size(X @ x), size(z))
    return [size(X @ x - z), size(off), primal, 10**0.5 * 1e-4 + 1e-2 * size(X.T @ y)]


def pdhg_by_hand(x: np.ndarray, steps: int, tau: float, sigma: float) -> list[Any]:
    """Chambolle and Pock's algorithm 1, with g* written out: N / 2 |y|^2 + y . Y."""
    y, ahead, seen = np.zeros(448), x, []
    for _ in range(steps):
        y_old, x_old, image = y, x, X @ ahead
        y = (y + sigma * (image - Y)) / (1 + sigma * N)
        x = shrunk(x - tau * X.T @ y, tau * ALPHA)
        ahead = 2 * x - x_old
        seen.append((x, told_by_hand(x, image - (y - y_old) / sigma, (x - x_old) / tau, y)))
    return seen


def linearized_by_hand(x: np.ndarray, steps: int, mu: float, scale: float) -> list[Any]:
    """Parikh and Boyd's formulas; the dual residual from a subgradient of f at x."""
    z, u, seen = X @ x, np.zeros(448), []
    for _ in range(steps):
        into = x - mu / scale * X.T @ (X @ x - z + u)
        x = shrunk(into, mu * ALPHA)
        z = (X @ x + u + scale / N * Y) / (1 + scale / N)
        u = u + X @ x - z
        seen.append((x, told_by_hand(x, z, (into - x) / mu + X.T @ u / scale, u / scale)))
    return seen


def test_they_go_the_way_of_plain_numpy() -> None:
    start, usual = np.linspace(-20, 20, 10), (1e-4, 1e-2)
    by_pdhg = pdhg(0.4, 1e-3, usual), pdhg_by_hand(start, 8, 0.4, 1e-3)
    by_admm = linearized(300.0, usual), linearized_by_hand(start, 8, 300 / SIZE**2, 300.0)
    for method, hand in (by_pdhg, by_admm):
        for (state, told), (x, promised) in zip(path(method, start, DATA, FOUR, 8), hand, strict=True):
            near(state.x, x, 1e-10)
            np.testing.assert_allclose(told, promised, rtol=1e-9)


def basis_pursuit(factor: float) -> Any:
    """The least |x|_1 with A x = b, to where a linear program would come, with tau sigma |A|^2 this large; and x."""
    rng = np.random.default_rng(3)
    a, sparse = rng.normal(size=(24, 40)), np.zeros(40)
    sparse[[3, 17, 30]] = [2.0, -1.0, 0.5]
    step, on_b = factor**0.5 / np.linalg.norm(a, 2), lambda v, step, part: part['y']
    method = primal_dual(soft_threshold(1.0), on_b, tau=step, sigma=step, tolerances=(1e-11, 0.0))
    return run(method, np.ones(40), {'x': a, 'y': a @ sparse}, FOUR, most=20000), sparse


def test_primal_dual_converges_below_its_bound_and_runs_away_above() -> None:
    outcome, sparse = basis_pursuit(0.98)
    near(outcome.state.x, sparse, 1e-9)
    with pytest.raises(FloatingPointError, match='residuals that are not finite'):
        basis_pursuit(4.0)


def test_x_may_be_a_pytree_and_a_any_linear_function() -> None:
    """Least squares with an intercept; the same as with a column of ones."""
    multiply = lambda model, part: part['x'] @ model['w'] + model['b']  # noqa: E731
    start, data = {'w': np.zeros(4), 'b': np.zeros(())}, {'x': X[:440, :4], 'y': Y[:440] + 7}
    matrix = np.c_[data['x'], np.ones(440)]
    size = norm({'w': np.ones(4), 'b': np.ones(())}, data, MESH, multiply)
    assert size == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-9)
    how = {'mu': 440 / size**2, 'scale': 440.0, 'multiply': multiply, 'tolerances': (1e-9, 0.0)}
    x = run(linearized_admm(lambda v, step: v, squared_error(1 / 440), **how), start, data, MESH).state.x
    near(np.append(x['w'], x['b']), np.linalg.lstsq(matrix, data['y'], rcond=None)[0], 1e-6)


def test_the_norm_is_found_from_below() -> None:
    for where in (workers.simulated(1), FOUR, MESH):
        found = norm(np.ones(10), DATA, where)
        assert SIZE * (1 - 1e-9) <= found <= SIZE * (1 + 1e-12)
    with pytest.raises(ValueError, match='not found to 1e-06 in 3 iterations'):
        norm(np.ones(10), DATA, FOUR, most=3)


USES = np.random.default_rng(5).normal(size=(4, 2, 3))
SUPPLY = np.array([1.0, -2.0])
CURVES = np.stack([np.diag([1.0, 2.0, 4.0]) + 0.3 * i for i in range(4)])
DUTY = {'p': CURVES, 'q': np.outer([1, 2, 3, 4], [-1, 0, 1.0]), 'a': USES}
"""Each of four workers has 1/2 x' P x + q' x, and uses A x."""


def respond(price: Any, part: Any, x: Any) -> Any:
    return -jnp.linalg.solve(part['p'][0], part['q'][0] + part['a'][0].T @ price)


def coupled(**how: Any) -> Iteration:
    use, usual = (lambda x, part: part['a'][0] @ x), {'tolerances': (1e-12, 0.0)}
    return dual_decomposition(respond, use, SUPPLY, optax.sgd(0.15), **{**usual, **how})


def kkt(held: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The decisions [4, 3] and the prices [2] where these rows hold with equality, by one linear system."""
    matrix, right = np.zeros((14, 14)), np.concatenate([-DUTY['q'].ravel(), SUPPLY])
    for i in range(4):
        at = slice(3 * i, 3 * i + 3)
        matrix[at, at], matrix[at, 12:], matrix[12:, at] = DUTY['p'][i], USES[i].T, USES[i]
    kept = [*range(12), *(12 + row for row in held)]
    found = np.zeros(14)
    found[kept] = np.linalg.solve(matrix[np.ix_(kept, kept)], right[kept])
    return found[:12].reshape(4, 3), found[12:]


@pytest.mark.parametrize('where', [FOUR, MESH], ids=['simulated', 'mesh'])
@pytest.mark.parametrize('kind, held', [('equality', [0, 1]), ('inequality', [1])])
def test_prices_are_those_of_the_linear_system(kind: str, held: list[int], where: workers.Workers) -> None:
    """Of inequalities not negative, and 0 where there is room: of a row that would have a negative price otherwise."""
    outcome = run(coupled(kind=kind), np.zeros(3), DUTY, where, most=3000)
    x, price = kkt(held)
    assert outcome.converged
    near(outcome.state.x, x, 1e-9)
    near(outcome.state.price, price, 1e-9)
    assert kkt([0, 1])[1][0] < 0 < kkt([1])[1][1]


def test_two_numbers_cross_and_of_a_cut_matrix_one_x_and_scalars() -> None:
    sent = []
    for method, data, entries in ((coupled(), DUTY, 3), (pdhg(), DATA, 10), (linearized(), DATA, 10)):
        made = program(method, np.zeros(entries), data, MESH)
        sent.append(sum(ledger.totals(ledger.traced(made.run, {'workers': 4}, made.state, data)).values()))
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
def test_no_other_point_is_better_than_the_proximal_one(prox: Prox, g: Callable[[Any], float]) -> None:
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


def federated(text: str, rounds: int = 400, nan: bool = False) -> tuple[Any, float]:
    """Four workers whose least squares problems are unlike: the last state, and how far it is from the best of all."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4, 6, 3)), rng.normal(size=(4, 6)) + 3 * np.arange(4)[:, None]
    x *= 1 + np.arange(4)[:, None, None]
    best = np.linalg.lstsq(x.reshape(-1, 3), y.ravel(), rcond=None)[0]
    loss = lambda w, b, key: ({'loss': jnp.sum((b['x'] @ w - b['y']) ** 2)}, b['y'].size)  # noqa: E731
    batch = {'x': x.reshape(-1, 3), 'y': y.ravel()}
    bad = batch | {'y': np.where(np.arange(24) < 6, np.nan, batch['y'])}
    made = make_step(loss, lambda key: jnp.zeros(3), line.build(text), batch, FOUR)
    state = made.init(jax.random.key(0))
    for t in range(rounds):
        state, _ = made.step(state, bad if nan and t == 1 else batch)
    return state, float(np.abs(np.asarray(state.params) - best).max())


def test_fed_admm_reaches_the_best_of_all_where_averages_stop_beside_it() -> None:
    """With eight steps of their own between two meetings; at rest the multipliers sum to 0, and are not 0."""
    assert federated('sgd(0.01) | average(every=8)')[1] > 1e-2
    state, off = federated('fed_admm(every=8, optimizer=sgd(0.01), rho=20.0)', 4000)
    assert off < 1e-9
    near(state.opt_state.dual.sum(0), 0, 1e-9)
    assert np.abs(state.opt_state.dual).max() > 0.1


def test_fed_admm_through_eight_bits_gets_there_too() -> None:
    text = 'fed_admm(every=8, optimizer=sgd(0.01), rho=20.0, codec=int8(block=3), feedback=True)'
    assert federated(text, 4000)[1] < 1e-5


def test_a_worker_without_a_finite_gradient_sits_out() -> None:
    text = 'fed_admm(every=4, optimizer=sgd(0.01, momentum=0.9), rho=1.0)'
    (one, _), (other, _) = federated(text, 1), federated(text, 2, nan=True)
    near(other.params[0], one.params[0], 0)
    assert np.all(np.asarray(other.params[1:] != one.params[1:]))
    jax.tree.map(lambda a, b: near(a[0], b[0], 0), one.opt_state.inner, other.opt_state.inner)


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


@pytest.mark.parametrize('fails, problem', REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(fails: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        fails()
