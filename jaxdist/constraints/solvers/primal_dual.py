"""The primal-dual hybrid gradient method (PDHG), with A sharded by rows (Chambolle and Pock 2011, A First-Order
Primal-Dual Algorithm for Convex Problems with Applications to Imaging, algorithm 1).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.solvers.iteration import (
    Data,
    Iteration,
    Residuals,
    Tolerances,
    check_tolerances,
    run,
    threshold,
)
from jaxdist.constraints.solvers.proximal import PartProx, Prox
from jaxdist.core import collectives
from jaxdist.core.deprecation import renamed_arguments
from jaxdist.core.errors import InputError
from jaxdist.core.types import Params
from jaxdist.core.workers import Workers

Multiply = Callable[[Params, Data], Any]
"""`(x, part) -> A_i x`, linear in x: the product of this worker's rows of A with x; both are pytrees."""


class PrimalDualState(NamedTuple):
    """The state of the iteration.

    Attributes:
        x: the primal variable; replicated.
        extrapolated: 2 x minus the last x; replicated.
        y: each worker's block of the dual variable.
    """

    x: Params
    extrapolated: Params
    y: Any


def rows(x: jax.Array, part: Data) -> jax.Array:
    """The product of this worker's rows `part['x']` [B, d] of a data matrix A with x [d] or [d, k].

    >>> import numpy as np
    >>> rows(np.array([1.0, 2.0]), {'x': np.eye(2)})
    array([1., 2.])
    """
    return part['x'] @ x


def primal_dual(
    prox_f: Prox,
    prox_g: PartProx,
    *,
    tau: float,
    sigma: float,
    norm: float | None = None,
    multiply: Multiply = rows,
    tolerances: Tolerances = (1e-4, 1e-2),
    axis: str = collectives.AXIS,
) -> Iteration:
    """Minimises f(x) + g(A x), g a sum over rows of A: each worker has the block of y of its rows, and x is replicated.

    y <- prox of g's conjugate at y + sigma A (2 x - last x), x <- prox_f(x - tau A'y, tau). It converges for
    tau sigma |A|^2 < 1. Communication per iteration: an all-reduce of A'y, of the size of x, and three scalars.

    The primal residual is A x - z, with z as below. The dual residual is the change of x divided by tau, an element of
    the subdifferential df(x) + A'y of the Lagrangian.

    `start` is the initial x; y starts at 0.

    Args:
        prox_f: the proximal operator of f, which counts once for all workers.
        prox_g: the proximal operator of this worker's rows of g, not of its conjugate. That operator is computed by
            Moreau's identity: with z = prox_g(y / sigma + A (2 x - last x), 1 / sigma), y moves by
            sigma (A (2 x - last x) - z).
        tau: the primal step.
        sigma: the dual step.
        norm: |A|, the largest singular value, if it is known (see `norm`); steps that are too long for it are refused.
        multiply: `(x, part) -> A_i x`, linear in x; `part['x'] @ x` by default.
        tolerances: absolute and relative, of the stopping rule.
        axis: the worker axis.

    Raises:
        InputError: a step that is not above 0, or steps too long for the norm; tolerances out of range.

    >>> import numpy as np
    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.proximal import soft_threshold, squared_error
    >>> data = {'x': np.eye(2, dtype=np.float32), 'y': np.array([3.0, 0.5], np.float32)}
    >>> method = primal_dual(soft_threshold(1.0), squared_error(), tau=0.9, sigma=1.0, norm=1.0, tolerances=(1e-6, 0.0))
    >>> np.asarray(run(method, np.zeros(2, np.float32), data, workers.simulated(2)).state.x).round(3)
    array([2., 0.], dtype=float32)
    """
    check_steps('primal_dual', {'tau': tau, 'sigma': sigma}, tolerances)
    if norm is not None and tau * sigma * norm**2 >= 1:
        raise InputError(
            f'primal_dual: tau sigma |A|^2 = {tau * sigma * norm**2:.6g} must be less than 1, or it may diverge: with '
            f'sigma={sigma} and norm={norm:.6g}, tau must be less than {1 / (sigma * norm**2):.6g}'
        )

    def init(start: Params, part: Data) -> PrimalDualState:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(multiply, start, part))
        return PrimalDualState(start, start, collectives.pvary(zeros, axis))

    def step(state: PrimalDualState, part: Data) -> tuple[PrimalDualState, Residuals]:
        image = multiply(collectives.pvary(state.extrapolated, axis), part)
        ascended = optax.tree.add_scale(state.y, sigma, image)
        z = prox_g(optax.tree.scale(1 / sigma, ascended), 1 / sigma, part)
        y = optax.tree.add_scale(ascended, -sigma, z)
        adjoint = collectives.psum(multiply_transposed(multiply, state.x, y, part, axis), axis)
        x = prox_f(optax.tree.add_scale(state.x, -tau, adjoint), tau)
        ax = multiply(collectives.pvary(x, axis), part)
        dual = optax.tree.scale(1 / tau, optax.tree.sub(state.x, x))
        sums = collectives.psum(squared_norms(ax, z), axis)
        residuals = split_residuals(sums, dual, adjoint, ax, tolerances, axis)
        extrapolated = optax.tree.sub(optax.tree.scale(2.0, x), state.x)
        return PrimalDualState(x, extrapolated, y), residuals

    return Iteration(init, step)


@renamed_arguments(where='workers')
def norm(
    start: Params, data: Data, workers: Workers, multiply: Multiply = rows, tolerance: float = 1e-6, most: int = 10000
) -> float:
    """The largest singular value of A, sharded by rows over workers, by power iteration; an estimate from below.

    Args:
        start: an initial x that is not orthogonal to the first right singular vector, as a random one.
        data: the data of all workers; see `iteration.run`.
        workers: the workers.
        multiply: `(x, part) -> A_i x`, as of the method.
        tolerance: the largest relative residual |A'A v - s v| / s of the eigenvector v; the relative error of the norm
            is about its square.
        most: the largest number of iterations.

    Raises:
        InputError: the tolerance is not reached within `most` iterations.

    >>> import numpy as np
    >>> from jaxdist.core import workers
    >>> data = {'x': np.diag(np.array([3.0, 2.0], np.float32))}
    >>> round(norm(np.ones(2, np.float32), data, workers.simulated(2)), 3)
    3.0
    """

    def init(start: Params, part: Data) -> Any:
        del part
        return optax.tree.scale(1 / optax.tree.norm(start), start), jnp.zeros_like(optax.tree.norm(start))

    def step(state: Any, part: Data) -> tuple[Any, Residuals]:
        v, _ = state
        image = multiply(collectives.pvary(v, workers.axis), part)
        turned = collectives.psum(multiply_transposed(multiply, v, image, part, workers.axis), workers.axis)
        size = optax.tree.norm(turned)
        error = optax.tree.norm(optax.tree.add_scale(turned, -size, v))
        return (optax.tree.scale(1 / size, turned), size), Residuals(error, 0 * error, tolerance * size, 0 * size)

    outcome = run(Iteration(init, step), start, data, workers, most)
    if not outcome.converged:
        raise InputError(f'the norm of A is not found to {tolerance} in {most} iterations')
    return float(outcome.state[1]) ** 0.5


def multiply_transposed(multiply: Multiply, x: Params, y: Any, part: Data, axis: str = collectives.AXIS) -> Params:
    """This worker's part of the transposed product, A_i' y_i, in the shape of x.

    >>> import numpy as np
    >>> multiply_transposed(rows, np.zeros(2), np.array([1.0], np.float32), {'x': np.array([[3.0, 4.0]], np.float32)})
    Array([3., 4.], dtype=float32)
    """
    _, pull = jax.vjp(lambda x: multiply(x, part), collectives.pvary(x, axis))
    return pull(collectives.pvary(y, axis))[0]


def squared_norms(ax: Any, z: Any) -> list[jax.Array]:
    """|A x - z|^2, |A x|^2 and |z|^2 over this worker's rows; `split_residuals` takes their sums over workers.

    >>> import numpy as np
    >>> squared_norms(np.array([3.0]), np.array([1.0]))
    [Array(4., dtype=float32), Array(9., dtype=float32), Array(1., dtype=float32)]
    """
    return [optax.tree.norm(each, squared=True) for each in (optax.tree.sub(ax, z), ax, z)]


def split_residuals(
    sums: Any, dual: Params, adjoint: Params, ax: Any, tolerances: Tolerances, axis: str = collectives.AXIS
) -> Residuals:
    """The residuals of f(x) + g(z) subject to A x = z (Boyd et al. 2011, section 3.3.1).

    Args:
        sums: the sums over workers of `squared_norms`.
        dual: the dual residual, in the shape of x.
        adjoint: A' times the multiplier, in the shape of x.
        ax: this worker's rows of A x, for their number; all workers have the same number.
        tolerances: absolute and relative.
        axis: the worker axis.

    >>> import numpy as np
    >>> residuals = lambda x: split_residuals(squared_norms(x, 0 * x), x, x, x, (0.0, 1.0))
    >>> jax.vmap(residuals, axis_name='workers')(np.array([[3.0, 4.0]]))
    Residuals(primal=Array([5.], dtype=float32), dual=Array([5.], dtype=float32), eps_primal=Array([5.], dtype=float32),
    eps_dual=Array([5.], dtype=float32))
    """
    primal, of_ax, of_z = map(jnp.sqrt, sums)
    entries = collectives.axis_size(axis) * optax.tree.size(ax)
    return Residuals(
        primal,
        optax.tree.norm(dual),
        threshold(tolerances, entries, of_ax, of_z),
        threshold(tolerances, optax.tree.size(dual), optax.tree.norm(adjoint)),
    )


def check_steps(name: str, steps: Mapping[str, float], tolerances: Tolerances) -> None:
    """Checks the step sizes and tolerances of a method.

    Args:
        name: the method's name, for the error message.
        steps: its step sizes by argument name.
        tolerances: absolute and relative.

    Raises:
        InputError: a step that is not above 0; tolerances that are not two numbers, 0 or more.

    >>> check_steps('primal_dual', {'tau': 0.0}, (1e-4, 1e-2))
    Traceback (most recent call last):
    jaxdist.InputError: primal_dual: tau=0.0 must be more than 0, and finite
    """
    for argument, value in steps.items():
        if not 0 < value < float('inf'):
            raise InputError(f'{name}: {argument}={value} must be more than 0, and finite')
    check_tolerances(name, tolerances)
