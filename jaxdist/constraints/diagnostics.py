"""How far from a solution: the conditions of Karush, Kuhn and Tucker, the duality gap, the best feasible iterate."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint
from jaxdist.constraints.lagrangian import Term, lagrangian, violation
from jaxdist.constraints.multipliers import read
from jaxdist.core.types import Batch, Params

Objective = Callable[[Params], jax.Array]
"""The loss of all examples, as a function of the parameters."""


class KKT(NamedTuple):
    """Residuals, scalars; all 0 at a solution (Karush 1939; Kuhn and Tucker 1951).

    Attributes:
        stationarity: the largest entry, in size, of the Lagrangian's gradient.
        feasibility: the largest violation.
        dual_feasibility: by how much a multiplier of an inequality is below 0, at most.
        complementarity: the largest |l g| of inequalities.
    """

    stationarity: jax.Array
    feasibility: jax.Array
    dual_feasibility: jax.Array
    complementarity: jax.Array


def kkt(
    objective: Objective, constraints: Sequence[Constraint], params: Params, multipliers: dict[str, Any], batch: Batch
) -> KKT:
    """The residuals at parameters and multipliers, with all examples in one batch; under `jax.jit` it is quick.

    >>> from jaxdist.constraints.constraint import equality
    >>> line = equality('line', lambda x: x.sum(), bound=1.0)
    >>> found = kkt(lambda x: x @ x, [line], jnp.array([0.5, 0.5]), {'line': jnp.float32(-1.0)}, {})
    >>> [float(residual) for residual in found]
    [0.0, 0.0, 0.0, 0.0]
    """
    terms = _terms(constraints, params, multipliers, batch)
    slope = jax.grad(lambda p: lagrangian(objective(p), _terms(constraints, p, multipliers, batch)))(params)
    one_sided = [term for term in terms if term.kind == 'inequality']
    return KKT(
        _largest([jnp.abs(leaf) for leaf in jax.tree.leaves(slope)]),
        _largest([violation(term) for term in terms]),
        _largest([jax.nn.relu(-term.multiplier) for term in one_sided]),
        _largest([jnp.abs(term.multiplier * term.value) for term in one_sided]),
    )


def duality_gap(
    objective: Objective,
    constraints: Sequence[Constraint],
    params: Params,
    multipliers: dict[str, Any],
    batch: Batch,
    minimise: Callable[[Objective], Params],
) -> jax.Array:
    """f(x) less the dual function at the multipliers, which is the Lagrangian's least value.

    At feasible parameters the gap is 0 or more, and at least as large as what f(x) is above the optimum. It is as right
    as `minimise` is: the Lagrangian must have a minimum, and it must be found. For models that are not convex nobody
    knows it.

    Args:
        objective: f.
        constraints: what is to hold.
        params: x.
        multipliers: by the constraints' names.
        batch: all examples.
        minimise: from a function of parameters to parameters at which it is least.

    >>> from jaxdist.constraints.constraint import equality
    >>> line = equality('line', lambda x: x.sum(), bound=1.0)
    >>> least = lambda f: -jax.grad(f)(jnp.zeros(2)) / 2  # of f = |x|^2 + m (sum x - 1)
    >>> gap = duality_gap(lambda x: x @ x, [line], jnp.array([1.0, 0.0]), {'line': jnp.float32(-1.0)}, {}, least)
    >>> float(gap)
    0.5
    """

    def of(params: Params) -> jax.Array:
        return lagrangian(objective(params), _terms(constraints, params, multipliers, batch))

    return objective(params) - of(minimise(of))


class Best(NamedTuple):
    """The best iterate so far: feasible, and of least objective; before any is, the one that is violated least.

    Attributes:
        params: a copy of it.
        objective: there.
        violation: there; within the tolerance if it is feasible.
    """

    params: Params
    objective: jax.Array
    violation: jax.Array


def first_best(params: Params) -> Best:
    """Nothing known yet: parameters of infinite objective and violation.

    >>> float(first_best(jnp.zeros(2)).objective)
    inf
    """
    infinity = jnp.asarray(jnp.inf, float)
    return Best(params, infinity, infinity)


def better(best: Best, params: Params, objective: jax.Array, violation: jax.Array, tolerance: float = 0.0) -> Best:
    """The better of the best so far and a new iterate; pure, for loops that are compiled.

    >>> best = better(first_best(jnp.zeros(1)), jnp.ones(1), jnp.float32(3.0), jnp.float32(0.5))
    >>> best = better(best, jnp.full(1, 2.0), jnp.float32(4.0), jnp.float32(0.0))
    >>> float(better(best, jnp.full(1, 9.0), jnp.float32(5.0), jnp.float32(0.0)).objective)
    4.0
    """
    held, holds = best.violation <= tolerance, violation <= tolerance
    lower = jnp.where(held & holds, objective < best.objective, holds | (~held & (violation < best.violation)))
    new = Best(params, objective.astype(float), violation.astype(float))
    return jax.tree.map(lambda a, b: jnp.where(lower, a, b), new, best)


def _terms(constraints: Sequence[Constraint], params: Params, multipliers: dict[str, Any], batch: Batch) -> list[Term]:
    """Of single examples each counts as one example of the mean does."""
    terms = []
    for c in constraints:
        sums = c.sums(params, batch)
        share = sums[1] / sums[1].sum() if c.over == 'example' else 1.0
        terms.append(Term(c.kind, c.value(sums), read(c, multipliers[c.name], batch) * share))
    return terms


def _largest(parts: list[jax.Array]) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(part, initial=0.0) for part in parts])) if parts else jnp.zeros(())
