"""Dual decomposition: workers share a resource, and a price that all know lets each decide alone (Everett 1963; Boyd et
al. 2011, Distributed Optimization and Statistical Learning via ADMM, section 2.2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.constraint import Kind
from jaxdist.constraints.solvers.iteration import Iteration, Residuals, Tolerances, allowed, check_tolerances
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer

Respond = Callable[[Any, Any, Any], Any]
"""`(price, part, x) -> argmin f_i(x) + price . A_i x`, of a worker's part of the data; x is its last one."""


class DecompositionState(NamedTuple):
    """Where the iteration is.

    Attributes:
        x: each worker's own decision.
        price: the multiplier of the coupling constraint, which all share.
        opt_state: the price's optimiser's, which all share.
    """

    x: Any
    price: jax.Array
    opt_state: optax.OptState


def dual_decomposition(
    respond: Respond,
    amount: Callable[[Any, Any], jax.Array],
    supply: Any,
    dual: optax.GradientTransformation,
    *,
    kind: Kind = 'equality',
    tolerances: Tolerances = (1e-4, 1e-2),
    axis: str = collectives.AXIS,
) -> Iteration:
    """Minimises the sum of f_i(x_i) with sum_i A_i x_i = supply, or <= supply: dual ascent in a price y, [m].

    x_i <- argmin f_i(x) + y . A_i x on each worker, then y <- y + a (sum_i A_i x_i - supply); of an inequality, y stays
    at 0 or more. What crosses are m numbers. It needs f_i that are strictly convex, and a short step: at most 2 over
    the largest eigenvalue of sum_i A_i (Hessian of f_i)^-1 A_i'.

    The primal residual is the violation, of an inequality max(violation, -y), which is 0 only where y is
    complementary too; since the x_i minimise the Lagrangian, the dual one is the move of the price.
    `start` is x_i, the same on every worker; y starts as 0.

    Args:
        respond: this worker's problem at a price.
        amount: `(x, part) -> A_i x`, [m].
        supply: b, a number or [m].
        dual: the optimiser of the price: as in dual lines, one that descends on what it is fed with, which is minus the
            violation: `sgd(a)` ascends.
        kind: `equality`, or `inequality`.
        tolerances: absolute and relative, of the stopping rule.
        axis: the worker axis.

    Raises:
        InputError: a kind of another name, `dual` is no optimiser, or tolerances out of range.

    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.iteration import run
    >>> respond = lambda price, part, x: part - price  # of f = 1/2 (x - part)^2
    >>> method = dual_decomposition(respond, lambda x, part: x, 3.0, optax.sgd(0.25), tolerances=(1e-6, 0.0))
    >>> outcome = run(method, jnp.zeros(1), jnp.array([1.0, 4.0]), workers.simulated(2))
    >>> outcome.state.price.round(3)
    Array([1.], dtype=float32)
    """
    if kind not in ('equality', 'inequality'):
        raise InputError(f"dual_decomposition: kind={kind!r} must be 'equality' or 'inequality'")
    inner = check_optimizer('dual_decomposition', dual, 'dual')
    check_tolerances('dual_decomposition', tolerances)

    def init(start: Any, part: Any) -> DecompositionState:
        shape = jax.eval_shape(amount, start, part)
        price = jnp.zeros(shape.shape, shape.dtype)
        return DecompositionState(collectives.pvary(start, axis), price, inner.init(price))

    def step(state: DecompositionState, part: Any) -> tuple[DecompositionState, Residuals]:
        x = respond(collectives.pvary(state.price, axis), part, state.x)
        taken = collectives.psum(amount(x, part), axis)
        violation = (taken - supply).astype(taken.dtype)
        moves, opt_state = inner.update(-violation, state.opt_state, state.price)
        price = optax.apply_updates(state.price, moves)
        if kind == 'inequality':
            price, violation = jnp.maximum(price, 0), jnp.maximum(violation, -state.price)
        size = jnp.linalg.norm
        residuals = Residuals(
            size(violation.ravel()),
            size((price - state.price).ravel()),
            allowed(tolerances, price.size, size(taken.ravel()), size(jnp.broadcast_to(supply, taken.shape).ravel())),
            allowed(tolerances, price.size, size(price.ravel())),
        )
        return DecompositionState(x, price, opt_state), residuals

    return Iteration(init, step)
