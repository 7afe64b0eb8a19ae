"""The primal-dual hybrid gradient method, with A cut by rows (Chambolle and Pock 2011, A First-Order Primal-Dual
Algorithm for Convex Problems with Applications to Imaging, algorithm 1).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.solvers.iteration import Iteration, Residuals, Tolerances, allowed, check_tolerances, run
from jaxdist.constraints.solvers.proximal import PartProx, Prox
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.workers import Workers

Multiply = Callable[[Any, Any], Any]
"""`(x, part) -> A_i x`: this worker's rows of A, linear in x; both are pytrees."""


class PrimalDualState(NamedTuple):
    """Where the iteration is.

    Attributes:
        x: the primal variable, which all share.
        ahead: x, extrapolated by its last move.
        y: each worker's own block of the dual variable.
    """

    x: Any
    ahead: Any
    y: Any


def rows(x: jax.Array, part: Any) -> jax.Array:
    """The product of this worker's rows, `part['x']` [B, d], with x [d] or [d, k]: a matrix A that is the data.

    >>> rows(jnp.array([1.0, 2.0]), {'x': jnp.eye(2)})
    Array([1., 2.], dtype=float32)
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
    """Minimises f(x) + g(A x), g a sum over rows: each worker owns the block of y of its rows, and x is shared.

    y <- prox of g's conjugate at y + sigma A (2 x - x before), x <- prox_f(x - tau A'y, tau). It converges for
    tau sigma |A|^2 < 1. What crosses is A'y, the size of x, and three scalars. The conjugate's operator is made from
    `prox_g` by Moreau's identity; with z its point, y moves by sigma (A (2 x - x before) - z).

    The primal residual is A x - z, the dual one the move of x by tau: what is left of 0 in df(x) + A'y.
    `start` is x; y starts as 0.

    Args:
        prox_f: of f, once over all workers.
        prox_g: of this worker's rows of g, not of its conjugate.
        tau: the primal step.
        sigma: the dual step.
        norm: |A|, the largest singular value, if it is known (see `norm`): steps too long for it are refused.
        multiply: `(x, part) -> A_i x`, linear in x; `part['x'] @ x` unless said otherwise.
        tolerances: absolute and relative, of the stopping rule.
        axis: the worker axis.

    Raises:
        InputError: a step that is not above 0, or steps too long for the norm; tolerances out of range.

    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.proximal import soft_threshold, squared_error
    >>> data = {'x': jnp.eye(2), 'y': jnp.array([3.0, 0.5])}
    >>> method = primal_dual(soft_threshold(1.0), squared_error(), tau=0.9, sigma=1.0, norm=1.0, tolerances=(1e-6, 0.0))
    >>> run(method, jnp.zeros(2), data, workers.simulated(2)).state.x.round(3)
    Array([2., 0.], dtype=float32)
    """
    check_steps('primal_dual', {'tau': tau, 'sigma': sigma}, tolerances)
    if norm is not None and tau * sigma * norm**2 >= 1:
        raise InputError(
            f'primal_dual: tau sigma |A|^2 = {tau * sigma * norm**2:.6g} must be less than 1, or it may diverge: with '
            f'sigma={sigma} and norm={norm:.6g}, tau must be less than {1 / (sigma * norm**2):.6g}'
        )

    def init(start: Any, part: Any) -> PrimalDualState:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(multiply, start, part))
        return PrimalDualState(start, start, collectives.pvary(zeros, axis))

    def step(state: PrimalDualState, part: Any) -> tuple[PrimalDualState, Residuals]:
        put = optax.tree.add_scale(state.y, sigma, multiply(collectives.pvary(state.ahead, axis), part))
        z = prox_g(optax.tree.scale(1 / sigma, put), 1 / sigma, part)
        y = optax.tree.add_scale(put, -sigma, z)
        back = collectives.psum(pulled_back(multiply, state.x, y, part, axis), axis)
        x = prox_f(optax.tree.add_scale(state.x, -tau, back), tau)
        ax = multiply(collectives.pvary(x, axis), part)
        off = optax.tree.scale(1 / tau, optax.tree.sub(state.x, x))
        residuals = split_residuals(collectives.psum(squares(ax, z), axis), off, back, ax, tolerances, axis)
        ahead = optax.tree.sub(optax.tree.scale(2.0, x), state.x)
        return PrimalDualState(x, ahead, y), residuals

    return Iteration(init, step)


def norm(
    start: Any, data: Any, where: Workers, multiply: Multiply = rows, tolerance: float = 1e-6, most: int = 10000
) -> float:
    """The largest singular value of A, cut by rows among workers, by power iteration; the estimate comes from below.

    Args:
        start: an x that is not orthogonal to the first singular vector; a random one is not.
        data: of all workers; see `iteration.run`.
        where: the workers.
        multiply: as of the method.
        tolerance: how far v may be from an eigenvector of A'A, relatively; the square of it is how far the norm is off,
            about.
        most: iterations at most.

    Raises:
        InputError: it is not found to this tolerance in so many iterations.

    >>> from jaxdist.core import workers
    >>> round(norm(jnp.ones(2), {'x': jnp.diag(jnp.array([3.0, 2.0]))}, workers.simulated(2)), 3)
    3.0
    """

    def init(start: Any, part: Any) -> Any:
        del part
        return optax.tree.scale(1 / optax.tree.norm(start), start), jnp.zeros_like(optax.tree.norm(start))

    def step(state: Any, part: Any) -> tuple[Any, Residuals]:
        v, _ = state
        image = multiply(collectives.pvary(v, where.axis), part)
        turned = collectives.psum(pulled_back(multiply, v, image, part, where.axis), where.axis)
        size = optax.tree.norm(turned)
        off = optax.tree.norm(optax.tree.add_scale(turned, -size, v))
        return (optax.tree.scale(1 / size, turned), size), Residuals(off, 0 * off, tolerance * size, 0 * size)

    outcome = run(Iteration(init, step), start, data, where, most)
    if not outcome.converged:
        raise InputError(f'the norm of A is not found to {tolerance} in {most} iterations')
    return float(outcome.state[1]) ** 0.5


def pulled_back(multiply: Multiply, x: Any, y: Any, part: Any, axis: str = collectives.AXIS) -> Any:
    """This worker's part of the transpose, A_i' y_i, in the shape of x.

    >>> pulled_back(rows, jnp.zeros(2), jnp.array([1.0]), {'x': jnp.array([[3.0, 4.0]])})
    Array([3., 4.], dtype=float32)
    """
    _, back = jax.vjp(lambda x: multiply(x, part), collectives.pvary(x, axis))
    return back(collectives.pvary(y, axis))[0]


def squares(ax: Any, z: Any) -> list[jax.Array]:
    """What the workers add up for `split_residuals`: |A x - z|^2, |A x|^2 and |z|^2 of this worker's rows.

    >>> squares(jnp.array([3.0]), jnp.array([1.0]))
    [Array(4., dtype=float32), Array(9., dtype=float32), Array(1., dtype=float32)]
    """
    return [optax.tree.norm(each, squared=True) for each in (optax.tree.sub(ax, z), ax, z)]


def split_residuals(
    sums: Any, off: Any, back: Any, ax: Any, tolerances: Tolerances, axis: str = collectives.AXIS
) -> Residuals:
    """The residuals of f(x) + g(z) with A x = z (Boyd et al. 2011, section 3.3.1).

    Args:
        sums: of `squares`, over all workers.
        off: the dual residual, in the shape of x.
        back: A' times the multiplier.
        ax: this worker's rows of A x, for their number; each has as many.
        tolerances: absolute and relative.
        axis: the worker axis.

    >>> told = lambda x: split_residuals(squares(x, 0 * x), x, x, x, (0.0, 1.0))
    >>> jax.vmap(told, axis_name='workers')(jnp.array([[3.0, 4.0]]))
    Residuals(primal=Array([5.], dtype=float32), dual=Array([5.], dtype=float32), eps_primal=Array([5.], dtype=float32),
    eps_dual=Array([5.], dtype=float32))
    """
    apart, image, own = map(jnp.sqrt, sums)
    entries = collectives.axis_size(axis) * optax.tree.size(ax)
    return Residuals(
        apart,
        optax.tree.norm(off),
        allowed(tolerances, entries, image, own),
        allowed(tolerances, optax.tree.size(off), optax.tree.norm(back)),
    )


def check_steps(name: str, steps: Mapping[str, float], tolerances: Tolerances) -> None:
    """Says what is wrong with a method's steps, or its tolerances.

    Raises:
        InputError: a step that is not above 0; tolerances that are not two numbers, 0 or more.

    >>> check_steps('primal_dual', {'tau': 0.0}, (1e-4, 1e-2))
    Traceback (most recent call last):
    jaxdist.InputError: primal_dual: tau=0.0 must be more than 0, and finite
    """
    for what, value in steps.items():
        if not 0 < value < float('inf'):
            raise InputError(f'{name}: {what}={value} must be more than 0, and finite')
    check_tolerances(name, tolerances)
