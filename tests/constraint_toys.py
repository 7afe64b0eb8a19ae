"""Problems under constraints whose solutions are known, and the loop in which a user solves them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from sklearn import datasets

from jaxdist import mean
from jaxdist.core import workers
from jaxdist.constraints import Constraint, DualAscent, equality, inequality, kkt
from jaxdist.constraints.library import demographic_parity
from jaxdist.training.step import make_step
from jaxdist.core.types import Model, Task
from jaxdist.core.workers import Workers

FOUR = workers.simulated(4)
ALONE = {'weight': np.array([1.0, 2.0, 0.0, 5.0])}
"""A batch for problems without data; one of four workers has nothing."""
UNEVEN = 0.4, 0.3, 0.2, 0.1
"""What part of the rows each of four workers has."""


class Problem(NamedTuple):
    """A loss, a sum over examples, that are counted by their `weight` [B]; where to start; and what is to hold."""

    loss: Callable[[Any, Any], jax.Array]
    start: Any
    constraints: tuple[Constraint, ...]
    batch: dict[str, np.ndarray] = ALONE

    def objective(self, params: Any) -> jax.Array:
        """The mean loss of all examples."""
        return self.loss(params, self.batch) / self.batch['weight'].sum()


def of_parameters(f: Callable[[jax.Array], jax.Array], start: Any, *constraints: Constraint) -> Problem:
    """The least f of parameters alone."""
    return Problem(lambda x, batch: batch['weight'].sum() * f(x), np.array(start), constraints)


class Walk(NamedTuple):
    """What happened in T steps: `params` and `multipliers` before each and after the last, `told` of constraints."""

    params: list[Any]
    multipliers: list[dict[str, np.ndarray]]
    told: list[dict[str, dict[str, np.ndarray]]]

    def value(self, name: str) -> np.ndarray:
        """A constraint's values [T]."""
        return np.array([shown[name]['value'][0] for shown in self.told])


def walk(
    problem: Problem,
    steps: int,
    update: optax.GradientTransformation,
    dual: optax.GradientTransformation | None = None,
    where: Workers = FOUR,
    **how: Any,
) -> Walk:
    """Solves the problem as a user would; `how` is of `DualAscent`, whose own dual line is there without another."""

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        return {'loss': problem.loss(params, batch)}, batch['weight'].sum()

    told = how if dual is None else {'dual': dual, **how}
    ascent = DualAscent(problem.constraints, **told) if problem.constraints else None
    start = lambda key: jax.tree.map(jnp.asarray, problem.start)  # noqa: E731
    line = optax.chain(mean(), update)
    program = make_step(loss, start, line, problem.batch, where, constraints=ascent)
    state, states, shown = program.init(jax.random.key(0)), [], []
    for step in range(steps + 1):
        states.append(jax.device_get((state.params, state.duals.multipliers if state.duals else {})))
        if step < steps:
            state, metrics = program.step(state, problem.batch)
            shown.append(metrics.get('constraints', {}))
    return Walk(*map(list, zip(*states, strict=True)), jax.device_get(shown))


def residual(problem: Problem, at: Walk) -> float:
    """The largest residual of Karush, Kuhn and Tucker at the end of a walk."""
    found = jax.jit(lambda params, own: kkt(problem.objective, problem.constraints, params, own, problem.batch))
    return max(map(float, found(at.params[-1], at.multipliers[-1])))


class Count(NamedTuple):
    """Steps taken."""

    steps: jax.Array


def newton(inverse: Callable[[Any, jax.Array], Any]) -> optax.GradientTransformation:
    """Steps of a known inverse Hessian [d, d], a function of the parameters [d] and of the steps taken."""

    def update(updates: Any, state: Count, params: Any = None) -> tuple[Any, Count]:
        return -inverse(params, state.steps) @ updates, Count(state.steps + 1)

    return optax.GradientTransformation(lambda params: Count(jnp.zeros((), jnp.int32)), update)


def minimum(objective: Callable[[jax.Array], jax.Array], start: Any, steps: int = 30) -> jax.Array:
    """Where a convex function of parameters [d] is least, by Newton's method; nothing of jaxdist in it."""

    def better(_: Any, x: jax.Array) -> jax.Array:
        return x - jnp.linalg.solve(jax.hessian(objective)(x), jax.grad(objective)(x))

    return jax.jit(lambda x: lax.fori_loop(0, steps, better, x))(jnp.asarray(start))


# Real data.


def shared(**columns: np.ndarray) -> dict[str, np.ndarray]:
    """All rows for four workers of uneven shares, padded with rows of weight 0: no row is left out."""
    rows = len(next(iter(columns.values())))
    cuts = np.round(np.cumsum(UNEVEN)[:-1] * rows).astype(int)
    most = max(len(part) for part in np.split(np.arange(rows), cuts))

    def padded(column: np.ndarray) -> np.ndarray:
        parts = np.split(column, cuts)
        return np.concatenate([np.pad(p, [(0, most - len(p)), *[(0, 0)] * (p.ndim - 1)]) for p in parts])

    return {name: padded(column) for name, column in {**columns, 'weight': np.ones(rows)}.items()}


def standardised(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1, and one of ones for the intercept."""
    return np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])


def logistic(params: jax.Array, batch: Any) -> jax.Array:
    """The log-loss of y, 0 or 1; the last parameter is the intercept."""
    return jnp.sum(batch['weight'] * jnp.logaddexp(0, (1 - 2 * batch['y']) * (batch['x'] @ params)))


def breast_cancer(bound: float) -> Problem:
    """Logistic regression on all 569 rows, with |w|^2 at most a bound and a free intercept."""
    raw = datasets.load_breast_cancer()
    ball = inequality('ball', lambda params: jnp.sum(params[:-1] ** 2), bound=bound)
    return Problem(logistic, np.zeros(31), (ball,), shared(x=standardised(raw.data), y=raw.target))


def squares(params: jax.Array, batch: Any) -> jax.Array:
    """Half the squared errors."""
    return 0.5 * jnp.sum(batch['weight'] * (batch['x'] @ params - batch['y']) ** 2)


def group_means(params: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The sums of predictions in both groups, and the groups' sizes."""
    inside = batch['weight'] * (np.arange(2)[:, None] == batch['group'])
    return inside @ (batch['x'] @ params), inside.sum(1)


SAME = equality('gap', group_means, over='ratio', then=lambda means: means[1] - means[0])


def near(gap: float) -> Constraint:
    """Mean predictions of the groups that differ by `gap` at most, as the library has it."""
    outputs = lambda params, batch: (batch['x'] @ params)[:, None]  # noqa: E731
    return demographic_parity(Model(None, None, (), outputs, Task('values', (11,), 1)), gap=gap)


def diabetes(*constraints: Constraint) -> Problem:
    """Least squares on all 442 rows; the two groups are the two values of `sex`, the larger of them group 1."""
    raw = datasets.load_diabetes(scaled=False)
    x = standardised(raw.data)
    batch = shared(x=x, y=raw.target, group=(x[:, 1] > 0).astype(int))
    return Problem(squares, np.zeros(11), constraints, batch)


def hessian(problem: Problem) -> np.ndarray:
    """Of a mean of squares, [d, d]."""
    x, weight = problem.batch['x'], problem.batch['weight']
    return (x.T * weight) @ x / weight.sum()
