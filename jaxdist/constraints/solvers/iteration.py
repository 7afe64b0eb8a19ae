"""Iterative methods that run inside a worker axis, and when they stop (Boyd et al. 2011, Distributed Optimization and
Statistical Learning via the Alternating Direction Method of Multipliers, section 3.3.1).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdist.core.errors import InputError
from jaxdist.core.layout import find_layout
from jaxdist.core.program import Program, build_program
from jaxdist.core.workers import Workers, local_shapes

Tolerances = tuple[float, float]
"""What residuals may be: absolutely, for each number, and relatively to what they are differences of."""


class Residuals(NamedTuple):
    """How far an iterate is from a solution, the same for every method; scalars, or [T] of T iterations.

    Attributes:
        primal: the 2-norm of what is to be 0 for the constraints to hold.
        dual: the 2-norm of what is to be 0 for the Lagrangian to be stationary.
        eps_primal: what `primal` may be at the end.
        eps_dual: what `dual` may be.
    """

    primal: Any
    dual: Any
    eps_primal: Any
    eps_dual: Any

    @property
    def small(self) -> Any:
        """Whether to stop: both residuals are within their tolerances."""
        return (self.primal <= self.eps_primal) & (self.dual <= self.eps_dual)


class Iteration(NamedTuple):
    """A method, as two pure functions of one worker that run inside the worker axis.

    Attributes:
        init: `(start, part) -> state`; of `part`, this worker's part of the data, shapes alone count.
        step: `(state, part) -> (state, Residuals)`; the residuals are of all workers, the same on each.
    """

    init: Callable[[Any, Any], Any]
    step: Callable[[Any, Any], tuple[Any, Residuals]]


class Outcome(NamedTuple):
    """What came of a run.

    Attributes:
        state: the last state; what each worker has of its own is [W, ...].
        history: the residuals of every iteration, NumPy arrays [T] each.
        converged: whether the stopping rule ended it, and not the number of iterations.
    """

    state: Any
    history: Residuals
    converged: bool


def check_tolerances(name: str, tolerances: Tolerances) -> None:
    """Says what is wrong with tolerances.

    Raises:
        InputError: they are not two numbers, 0 or more.

    >>> check_tolerances('admm', (1e-4, -1.0))
    Traceback (most recent call last):
    jaxdist.InputError: admm: tolerances=(0.0001, -1.0) must be two numbers, 0 or more: (absolute, relative)
    """
    if not (isinstance(tolerances, tuple) and len(tolerances) == 2 and all(t >= 0 for t in tolerances)):
        raise InputError(f'{name}: tolerances={tolerances!r} must be two numbers, 0 or more: (absolute, relative)')


def allowed(tolerances: Tolerances, entries: int, *sizes: jax.Array) -> jax.Array:
    """What a residual may be: sqrt(entries) absolute + relative max(sizes).

    Args:
        tolerances: absolute and relative.
        entries: how many numbers the residual has.
        sizes: the norms of what it is a difference of.

    >>> float(allowed((0.5, 0.25), 4, jnp.float32(2.0), jnp.float32(8.0)))
    3.0
    """
    absolute, relative = tolerances
    return math.sqrt(entries) * absolute + relative * jnp.max(jnp.stack(sizes))


def program(iteration: Iteration, start: Any, data: Any, where: Workers) -> Program[Any]:
    """The method as one program for all workers, for loops of one's own: `program.init(start)` and `program.step`.

    Args:
        iteration: the method.
        start: where it starts, the same for every worker; see the method.
        data: of all workers, a pytree of arrays whose first dim is divided among them.
        where: the workers.

    Raises:
        InputError: a first dim that the number of workers does not divide.

    >>> from jaxdist.core.workers import simulated
    >>> summing = Iteration(lambda start, part: start, lambda state, part: (state + part.sum(), Residuals(0, 0, 0, 0)))
    >>> made = program(summing, jnp.zeros(()), jnp.arange(4.0), simulated(2))
    >>> made.step(made.init(jnp.zeros(())), jnp.arange(4.0))[0]
    Array([1., 5.], dtype=float32)
    """
    for path, x in jax.tree_util.tree_flatten_with_path(data)[0]:
        if x.ndim == 0 or x.shape[0] % where.count:
            raise InputError(
                f'data{jax.tree_util.keystr(path)} has shape {x.shape}, whose first dim must be a multiple of '
                f'{where.count}, the number of workers; fill up with examples of weight 0'
            )
    part = local_shapes(data, where.count)

    def init(start: Any) -> Any:
        return iteration.init(start, part)

    layout = find_layout(init, iteration.step, where, (start,), data)
    return build_program(init, iteration.step, layout, where, (start,))


def run(iteration: Iteration, start: Any, data: Any, where: Workers, most: int = 1000) -> Outcome:
    """Iterates until both residuals are within their tolerances, or `most` times.

    Args:
        iteration: the method.
        start: where it starts, the same for every worker; see the method.
        data: of all workers, a pytree of arrays whose first dim is divided among them.
        where: the workers.
        most: iterations at most.

    Raises:
        InputError: a first dim that the number of workers does not divide, numbers that are not finite in `start` or
            `data`, or `most` below 1.
        FloatingPointError: a residual that is not finite: the iteration diverges, or a local solver does.

    >>> from jaxdist.core.workers import simulated
    >>> halving = Iteration(lambda start, part: start, lambda x, part: (x / 2, Residuals(x / 2, 0.0, 0.1, 0.1)))
    >>> outcome = run(halving, jnp.ones(()), jnp.zeros(2), simulated(2))
    >>> outcome.state, outcome.history.primal, outcome.converged
    (Array(0.0625, dtype=float32), array([0.5   , 0.25  , 0.125 , 0.0625], dtype=float32), True)
    """
    if most < 1:
        raise InputError(f'most={most} must be 1 iteration or more')
    start, data = jax.tree.map(jnp.asarray, start), _placed(data, where)
    _check_finite('start', start)
    _check_finite('data', data)
    made = program(iteration, start, data, where)
    state = made.init(start)
    rows: list[Residuals] = []
    while len(rows) < most and not (rows and rows[-1].small):
        state, told = made.step(state, data)
        rows.append(Residuals(*(x[0] for x in jax.device_get(told))))
        if not np.isfinite(rows[-1]).all():
            raise FloatingPointError(
                f'iteration {len(rows)} of at most {most} gives residuals that are not finite: {_told(rows[-1])}. The '
                'steps are too long for this problem, or a local solver fails on it'
            )
    return Outcome(state, Residuals(*map(np.array, zip(*rows, strict=True))), bool(rows[-1].small))


def _placed(data: Any, where: Workers) -> Any:
    """The data on their devices, once for all iterations; where they cannot be, as they are."""
    if isinstance(where.mesh, Mesh) and all(
        x.shape[:1] and x.shape[0] % where.count == 0 for x in jax.tree.leaves(data)
    ):
        return jax.device_put(data, NamedSharding(where.mesh, PartitionSpec(where.axis)))
    return jax.tree.map(jnp.asarray, data)


def _check_finite(what: str, tree: Any) -> None:
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(x.dtype, jnp.inexact) and not bool(jnp.isfinite(x).all()):
            count = int((~jnp.isfinite(x)).sum())
            raise InputError(f'{what}{jax.tree_util.keystr(path)} has {count} numbers that are not finite')


def _told(residuals: Residuals) -> str:
    return ', '.join(f'{name} {float(x):.3g}' for name, x in residuals._asdict().items())
