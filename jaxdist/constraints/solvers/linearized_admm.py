"""Linearised ADMM: f(x) + g(A x) with A cut by rows, and no system with A to be solved (Parikh and Boyd 2014, Proximal
Algorithms, section 4.4.2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.solvers.iteration import Iteration, Residuals, Tolerances
from jaxdist.constraints.solvers.primal_dual import Multiply, check_steps, pulled_back, rows, split_residuals, squares
from jaxdist.constraints.solvers.proximal import PartProx, Prox
from jaxdist.core import collectives
from jaxdist.core.errors import InputError


class LinearizedState(NamedTuple):
    """Where the iteration is.

    Attributes:
        x: the primal variable, which all share.
        z: each worker's own block of A x.
        u: each worker's own block of the scaled multiplier of A x = z.
        back: A' u, which all share.
        before: A' u one iteration ago.
    """

    x: Any
    z: Any
    u: Any
    back: Any
    before: Any


def linearized_admm(
    prox_f: Prox,
    prox_g: PartProx,
    *,
    mu: float,
    scale: float = 1.0,
    norm: float | None = None,
    multiply: Multiply = rows,
    tolerances: Tolerances = (1e-4, 1e-2),
    axis: str = collectives.AXIS,
) -> Iteration:
    """Minimises f(x) + g(A x), g a sum over rows: each worker owns the blocks of z and u of its rows, and x is shared.

    With lambda the `scale`: x <- prox_f(x - (mu / lambda) A'(A x - z + u), mu), z <- prox_g(A x + u, lambda),
    u <- u + A x - z. It converges for mu <= lambda / |A|^2. What crosses is A' u, the size of x, and three scalars: of
    A'(A x - z) is known what A' u has changed by. The multiplier of A x = z is u / lambda.

    `start` is x; z starts as A x, and u as 0.

    Args:
        prox_f: of f, once over all workers.
        prox_g: of this worker's rows of g.
        mu: the step of x.
        scale: lambda, the step of z.
        norm: |A|, the largest singular value, if it is known: `mu` is refused where it is too large for it.
        multiply: `(x, part) -> A_i x`, linear in x; `part['x'] @ x` unless said otherwise.
        tolerances: absolute and relative, of the stopping rule.
        axis: the worker axis.

    Raises:
        InputError: a step that is not above 0, or is too long for the norm; tolerances out of range.

    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.iteration import run
    >>> from jaxdist.constraints.solvers.proximal import soft_threshold, squared_error
    >>> data = {'x': jnp.eye(2), 'y': jnp.array([3.0, 0.5])}
    >>> method = linearized_admm(soft_threshold(1.0), squared_error(), mu=1.0, norm=1.0, tolerances=(1e-6, 0.0))
    >>> run(method, jnp.zeros(2), data, workers.simulated(2)).state.x.round(3)
    Array([2., 0.], dtype=float32)
    """
    check_steps('linearized_admm', {'mu': mu, 'scale': scale}, tolerances)
    if norm is not None and mu * norm**2 > scale * (1 + 1e-9):
        raise InputError(
            f'linearized_admm: mu={mu} must be at most scale / norm^2 = {scale / norm**2:.6g}, or it may diverge'
        )

    def init(start: Any, part: Any) -> LinearizedState:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(multiply, start, part))
        z, u = collectives.pvary((zeros, zeros), axis)
        still = jax.tree.map(jnp.zeros_like, start)
        return LinearizedState(start, z, u, still, still)

    def step(state: LinearizedState, part: Any) -> tuple[LinearizedState, Residuals]:
        # A'(A x - z + u): u last moved by A x - z, and not at all at the start, where z is A x.
        pull = optax.tree.sub(optax.tree.scale(2.0, state.back), state.before)
        x = prox_f(optax.tree.add_scale(state.x, -mu / scale, pull), mu)
        ax = multiply(collectives.pvary(x, axis), part)
        z = prox_g(optax.tree.add(ax, state.u), scale, part)
        u = optax.tree.sub(optax.tree.add(state.u, ax), z)
        back, *sums = collectives.psum([pulled_back(multiply, x, u, part, axis), *squares(ax, z)], axis)
        moved = optax.tree.scale(1 / mu, optax.tree.sub(state.x, x))
        off = optax.tree.add_scale(moved, 1 / scale, optax.tree.sub(back, pull))
        residuals = split_residuals(sums, off, optax.tree.scale(1 / scale, back), ax, tolerances, axis)
        return LinearizedState(x, z, u, back, state.back), residuals

    return Iteration(init, step)
