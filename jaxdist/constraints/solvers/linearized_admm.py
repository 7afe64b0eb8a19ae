"""Linearised ADMM: f(x) + g(A x) with A sharded by rows, without solving a system with A (Parikh and Boyd 2014,
Proximal Algorithms, section 4.4.2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.solvers.iteration import Data, Iteration, Residuals, Tolerances
from jaxdist.constraints.solvers.primal_dual import (
    Multiply,
    check_steps,
    multiply_transposed,
    rows,
    split_residuals,
    squared_norms,
)
from jaxdist.constraints.solvers.proximal import PartProx, Prox
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.types import Params


class LinearizedState(NamedTuple):
    """The state of the iteration.

    Attributes:
        x: the primal variable; replicated.
        z: each worker's block of A x.
        u: each worker's block of the scaled multiplier of A x = z.
        adjoint: A' u; replicated.
        last_adjoint: A' u of the last iteration; replicated.
    """

    x: Params
    z: Any
    u: Any
    adjoint: Params
    last_adjoint: Params


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
    """Minimises f(x) + g(A x), g a sum over rows: x is replicated, and each worker has its rows' blocks of z and u.

    With lambda the `scale`: x <- prox_f(x - (mu / lambda) A'(A x - z + u), mu), z <- prox_g(A x + u, lambda),
    u <- u + A x - z. It converges for mu <= lambda / |A|^2. The multiplier of A x = z is u / lambda. Communication per
    iteration: an all-reduce of A' u, of the size of x, and three scalars; A'(A x - z) is the change of A' u.

    `start` is the initial x; z starts at A x, and u at 0.

    Args:
        prox_f: the proximal operator of f, which counts once for all workers.
        prox_g: the proximal operator of this worker's rows of g.
        mu: the step of x.
        scale: lambda, the step of z.
        norm: |A|, the largest singular value, if it is known; `mu` is refused if it is too large for it.
        multiply: `(x, part) -> A_i x`, linear in x; `part['x'] @ x` by default.
        tolerances: absolute and relative, of the stopping rule.
        axis: the worker axis.

    Raises:
        InputError: a step that is not above 0, or is too long for the norm; tolerances out of range.

    >>> import numpy as np
    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.iteration import run
    >>> from jaxdist.constraints.solvers.proximal import soft_threshold, squared_error
    >>> data = {'x': np.eye(2, dtype=np.float32), 'y': np.array([3.0, 0.5], np.float32)}
    >>> method = linearized_admm(soft_threshold(1.0), squared_error(), mu=1.0, norm=1.0, tolerances=(1e-6, 0.0))
    >>> np.asarray(run(method, np.zeros(2, np.float32), data, workers.simulated(2)).state.x).round(3)
    array([2., 0.], dtype=float32)
    """
    check_steps('linearized_admm', {'mu': mu, 'scale': scale}, tolerances)
    if norm is not None and mu * norm**2 > scale * (1 + 1e-9):
        raise InputError(
            f'linearized_admm: mu={mu} must be at most scale / norm^2 = {scale / norm**2:.6g}, or it may diverge'
        )

    def init(start: Params, part: Data) -> LinearizedState:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(multiply, start, part))
        z, u = collectives.pvary((zeros, zeros), axis)
        adjoint = jax.tree.map(jnp.zeros_like, start)
        return LinearizedState(start, z, u, adjoint, adjoint)

    def step(state: LinearizedState, part: Data) -> tuple[LinearizedState, Residuals]:
        # A'(A x - z + u) without another all-reduce: u last moved by A x - z, and not at all at the start, where z is A
        # x.
        gradient = optax.tree.sub(optax.tree.scale(2.0, state.adjoint), state.last_adjoint)
        x = prox_f(optax.tree.add_scale(state.x, -mu / scale, gradient), mu)
        ax = multiply(collectives.pvary(x, axis), part)
        z = prox_g(optax.tree.add(ax, state.u), scale, part)
        u = optax.tree.sub(optax.tree.add(state.u, ax), z)
        message = [multiply_transposed(multiply, x, u, part, axis), *squared_norms(ax, z)]
        adjoint, *sums = collectives.psum(message, axis)
        moved = optax.tree.scale(1 / mu, optax.tree.sub(state.x, x))
        dual = optax.tree.add_scale(moved, 1 / scale, optax.tree.sub(adjoint, gradient))
        residuals = split_residuals(sums, dual, optax.tree.scale(1 / scale, adjoint), ax, tolerances, axis)
        return LinearizedState(x, z, u, adjoint, state.adjoint), residuals

    return Iteration(init, step)
