"""Dual decomposition: workers share a resource, and each decides locally by its price (Everett 1963; Boyd et al. 2011,
Distributed Optimization and Statistical Learning via the Alternating Direction Method of Multipliers, section 2.2).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.constraint import Kind
from jaxdist.constraints.solvers.iteration import Data, Iteration, Residuals, Tolerances, check_tolerances, threshold
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.types import Params

Respond = Callable[[jax.Array, Data, Params], Params]
"""`(price, part, x) -> argmin f_i(x) + price . A_i x` on a worker's part of the data; `x` is its last decision."""


class DecompositionState(NamedTuple):
    """The state of the iteration.

    Attributes:
        x: each worker's decision.
        price: the multiplier of the coupling constraint, [m]; replicated.
        opt_state: the state of the price's optimiser; replicated.
    """

    x: Params
    price: jax.Array
    opt_state: optax.OptState


def dual_decomposition(
    respond: Respond,
    amount: Callable[[Params, Data], jax.Array],
    supply: jax.typing.ArrayLike,
    dual: optax.GradientTransformation,
    *,
    kind: Kind = 'equality',
    tolerances: Tolerances = (1e-4, 1e-2),
    axis: str = collectives.AXIS,
) -> Iteration:
    """Minimises sum_i f_i(x_i) subject to sum_i A_i x_i = supply, or <= supply, by dual ascent on a price y, [m].

    x_i <- argmin f_i(x) + y . A_i x on each worker, then y <- y + a (sum_i A_i x_i - supply); for an inequality y is
    projected to 0 or more. Communication per iteration: an all-reduce of m numbers. It needs strictly convex f_i and a
    short step, at most 2 over the largest eigenvalue of sum_i A_i (Hessian of f_i)^-1 A_i'.

    The primal residual is the violation; for an inequality max(violation, -y), which is 0 only where y is complementary
    as well. As the x_i minimise the Lagrangian, the dual residual is the change of the price.

    `start` is the initial x_i, the same on every worker; y starts at 0.

    Args:
        respond: this worker's subproblem at a price.
        amount: `(x, part) -> A_i x`, [m].
        supply: the right-hand side, a number or [m].
        dual: the price's optimiser. As in dual lines, it descends and is fed with minus the violation: `sgd(a)`
            ascends.
        kind: `equality`, or `inequality`.
        tolerances: absolute and relative, of the stopping rule.
        axis: the worker axis.

    Raises:
        InputError: a kind of another name, `dual` is not an optimiser, or tolerances out of range.

    >>> import numpy as np
    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.iteration import run
    >>> respond = lambda price, part, x: part - price  # of f = 1/2 (x - part)^2
    >>> method = dual_decomposition(respond, lambda x, part: x, 3.0, optax.sgd(0.25), tolerances=(1e-6, 0.0))
    >>> data = np.array([1.0, 4.0], np.float32)
    >>> outcome = run(method, np.zeros(1, np.float32), data, workers.simulated(2))
    >>> np.asarray(outcome.state.price).round(3)
    array([1.], dtype=float32)
    """
    if kind not in ('equality', 'inequality'):
        raise InputError(f"dual_decomposition: kind={kind!r} must be 'equality' or 'inequality'")
    inner = check_optimizer('dual_decomposition', dual, 'dual')
    check_tolerances('dual_decomposition', tolerances)

    def init(start: Params, part: Data) -> DecompositionState:
        shape = jax.eval_shape(amount, start, part)
        price = jnp.zeros(shape.shape, shape.dtype)
        return DecompositionState(collectives.pvary(start, axis), price, inner.init(price))

    def step(state: DecompositionState, part: Data) -> tuple[DecompositionState, Residuals]:
        x = respond(collectives.pvary(state.price, axis), part, state.x)
        taken = collectives.psum(amount(x, part), axis)
        violation = (taken - supply).astype(taken.dtype)
        updates, opt_state = inner.update(-violation, state.opt_state, state.price)
        price = optax.apply_updates(state.price, updates)
        if kind == 'inequality':
            price, violation = jnp.maximum(price, 0), jnp.maximum(violation, -state.price)
        norm = jnp.linalg.norm
        residuals = Residuals(
            norm(violation.ravel()),
            norm((price - state.price).ravel()),
            threshold(tolerances, price.size, norm(taken.ravel()), norm(jnp.broadcast_to(supply, taken.shape).ravel())),
            threshold(tolerances, price.size, norm(price.ravel())),
        )
        return DecompositionState(x, price, opt_state), residuals

    return Iteration(init, step)
