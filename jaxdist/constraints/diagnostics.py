"""Optimality measures: residuals of the Karush-Kuhn-Tucker conditions, the duality gap, the best feasible iterate."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint
from jaxdist.constraints.lagrangian import Term, lagrangian, violation
from jaxdist.constraints.multipliers import Multipliers, lookup
from jaxdist.core.types import Batch, Params

Objective = Callable[[Params], jax.Array]
"""The loss over all examples as a function of the parameters; a scalar."""


class KKT(NamedTuple):
    """Residuals, scalars; all 0 at a solution (Karush 1939; Kuhn and Tucker 1951).

    Attributes:
        stationarity: the largest entry, in size, of the Lagrangian's gradient.
        feasibility: the largest violation.
        dual_feasibility: the largest distance of an inequality's multiplier below 0.
        complementarity: the largest |l g| of inequalities.
    """

    stationarity: jax.Array
    feasibility: jax.Array
    dual_feasibility: jax.Array
    complementarity: jax.Array


def kkt(
    objective: Objective, constraints: Sequence[Constraint], params: Params, multipliers: Multipliers, batch: Batch
) -> KKT:
    """The residuals at the given parameters and multipliers, on one batch of all examples; can be jitted.

    >>> import numpy as np
    >>> from jaxdist.constraints.constraint import equality
    >>> line = equality('line', lambda x: x.sum(), bound=1.0)
    >>> residuals = kkt(lambda x: x @ x, [line], np.array([0.5, 0.5], np.float32), {'line': np.float32(-1.0)}, {})
    >>> [float(residual) for residual in residuals]
    [0.0, 0.0, 0.0, 0.0]
    """
    terms = _terms(constraints, params, multipliers, batch)
    gradient = jax.grad(lambda p: lagrangian(objective(p), _terms(constraints, p, multipliers, batch)))(params)
    inequalities = [term for term in terms if term.kind == 'inequality']
    return KKT(
        _largest([jnp.abs(leaf) for leaf in jax.tree.leaves(gradient)]),
        _largest([violation(term) for term in terms]),
        _largest([jax.nn.relu(-term.multiplier) for term in inequalities]),
        _largest([jnp.abs(term.multiplier * term.value) for term in inequalities]),
    )


def duality_gap(
    objective: Objective,
    constraints: Sequence[Constraint],
    params: Params,
    multipliers: Multipliers,
    batch: Batch,
    minimise: Callable[[Objective], Params],
) -> jax.Array:
    """f(x) minus the dual function at the multipliers, which is the minimum of the Lagrangian over x; a scalar.

    At feasible parameters the gap is 0 or more, and an upper bound of f(x) minus the optimum. It is as exact as
    `minimise`: the Lagrangian must have a minimum, and `minimise` must find it. For models that are not convex the gap
    is not available.

    Args:
        objective: f.
        constraints: the constraints.
        params: x.
        multipliers: by the constraints' names.
        batch: all examples in one batch.
        minimise: maps a function of parameters to parameters at which it is smallest.

    >>> import numpy as np
    >>> from jaxdist.constraints.constraint import equality
    >>> line = equality('line', lambda x: x.sum(), bound=1.0)
    >>> minimise = lambda f: -jax.grad(f)(np.zeros(2, np.float32)) / 2  # of f = |x|^2 + m (sum x - 1)
    >>> gap = duality_gap(lambda x: x @ x, [line], np.array([1.0, 0.0]), {'line': np.float32(-1.0)}, {}, minimise)
    >>> float(gap)
    0.5
    """

    def value(params: Params) -> jax.Array:
        return lagrangian(objective(params), _terms(constraints, params, multipliers, batch))

    return objective(params) - value(minimise(value))


class Best(NamedTuple):
    """The best iterate so far: feasible with the smallest objective or, before any is feasible, of least violation.

    Attributes:
        params: a copy of its parameters.
        objective: the objective there.
        violation: the violation there; within the tolerance if it is feasible.
    """

    params: Params
    objective: jax.Array
    violation: jax.Array


def first_best(params: Params) -> Best:
    """The initial value: the given parameters with an infinite objective and violation, so that any iterate is better.

    >>> import numpy as np
    >>> float(first_best(np.zeros(2)).objective)
    inf
    """
    infinity = jnp.asarray(jnp.inf, float)
    return Best(params, infinity, infinity)


def better(best: Best, params: Params, objective: jax.Array, violation: jax.Array, tolerance: float = 0.0) -> Best:
    """The better of the best so far and a new iterate; a pure function, for compiled loops.

    >>> import numpy as np
    >>> best = better(first_best(np.zeros(1)), np.ones(1), np.float32(3.0), np.float32(0.5))
    >>> best = better(best, np.full(1, 2.0), np.float32(4.0), np.float32(0.0))
    >>> float(better(best, np.full(1, 9.0), np.float32(5.0), np.float32(0.0)).objective)
    4.0
    """
    was_feasible, feasible = best.violation <= tolerance, violation <= tolerance
    replace = jnp.where(
        was_feasible & feasible,
        objective < best.objective,
        feasible | (~was_feasible & (violation < best.violation)),
    )
    new = Best(params, objective.astype(float), violation.astype(float))
    return jax.tree.map(lambda a, b: jnp.where(replace, a, b), new, best)


def _terms(constraints: Sequence[Constraint], params: Params, multipliers: Multipliers, batch: Batch) -> list[Term]:
    terms = []
    for c in constraints:
        sums = c.sums(params, batch)
        # The Lagrangian has the mean over examples: an example's multiplier is weighted by the example's share of it.
        share = sums[1] / sums[1].sum() if c.over == 'example' else 1.0
        terms.append(Term(c.kind, c.value(sums), lookup(c, multipliers[c.name], batch) * share))
    return terms


def _largest(parts: list[jax.Array]) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(part, initial=0.0) for part in parts])) if parts else jnp.zeros(())
