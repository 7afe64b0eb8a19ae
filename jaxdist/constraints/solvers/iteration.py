"""Iterative methods that run inside a worker axis, and their stopping rule (Boyd et al. 2011, Distributed Optimization
and Statistical Learning via the Alternating Direction Method of Multipliers, section 3.3.1).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdist.core.deprecation import renamed_arguments
from jaxdist.core.errors import InputError
from jaxdist.core.layout import find_layout
from jaxdist.core.program import Program, build_program
from jaxdist.core.workers import Workers, local_shapes

Tolerances = tuple[float, float]
"""Absolute tolerance of each entry of a residual, and tolerance relative to the vectors that it is a difference of."""

Data = Any
"""A pytree of arrays whose first dim is divided among the workers; or one worker's part of it."""


class Residuals(NamedTuple):
    """The primal and dual residuals of an iterate, for every method; scalars, or [T] for T iterations.

    Attributes:
        primal: the 2-norm of the primal residual, which is 0 where the constraints hold.
        dual: the 2-norm of the dual residual, which is 0 where the Lagrangian is stationary.
        eps_primal: the threshold below which `primal` is small.
        eps_dual: the threshold below which `dual` is small.
    """

    primal: Any
    dual: Any
    eps_primal: Any
    eps_dual: Any

    @property
    def small(self) -> Any:
        """The stopping rule: whether both residuals are within their thresholds."""
        return (self.primal <= self.eps_primal) & (self.dual <= self.eps_dual)


class Iteration(NamedTuple):
    """A method: two pure per-worker functions that run inside the worker axis.

    Attributes:
        init: `(start, part) -> state`; `part` is this worker's part of the data, of which only shapes are used.
        step: `(state, part) -> (state, Residuals)`; the residuals are over all workers, replicated.
    """

    init: Callable[[Any, Data], Any]
    step: Callable[[Any, Data], tuple[Any, Residuals]]


class Outcome(NamedTuple):
    """The outcome of a run.

    Attributes:
        state: the last state; leaves that vary over workers are [W, ...].
        history: the residuals of every iteration, NumPy arrays [T] each.
        converged: whether the stopping rule ended the run, rather than the limit on iterations.
    """

    state: Any
    history: Residuals
    converged: bool


def check_tolerances(name: str, tolerances: Tolerances) -> None:
    """Checks the tolerances of a method.

    Args:
        name: the method's name, for the error message.
        tolerances: absolute and relative.

    Raises:
        InputError: they are not two numbers, 0 or more.

    >>> check_tolerances('admm', (1e-4, -1.0))
    Traceback (most recent call last):
    jaxdist.InputError: admm: tolerances=(0.0001, -1.0) must be two numbers, 0 or more: (absolute, relative)
    """
    if not (isinstance(tolerances, tuple) and len(tolerances) == 2 and all(t >= 0 for t in tolerances)):
        raise InputError(f'{name}: tolerances={tolerances!r} must be two numbers, 0 or more: (absolute, relative)')


def threshold(tolerances: Tolerances, entries: int, *sizes: jax.Array) -> jax.Array:
    """The threshold of a residual's 2-norm: sqrt(entries) absolute + relative max(sizes).

    Args:
        tolerances: absolute and relative.
        entries: the number of entries of the residual.
        sizes: the 2-norms of the vectors that it is a difference of.

    >>> float(threshold((0.5, 0.25), 4, np.float32(2.0), np.float32(8.0)))
    3.0
    """
    absolute, relative = tolerances
    return math.sqrt(entries) * absolute + relative * jnp.max(jnp.stack(sizes))


@renamed_arguments(where='workers')
def program(iteration: Iteration, start: Any, data: Data, workers: Workers) -> Program[Any]:
    """The method as one program for all workers, for custom loops: `program.init(start)` and `program.step`.

    Args:
        iteration: the method.
        start: the starting point, the same for every worker; see the method.
        data: the data of all workers, a pytree of arrays whose first dim is divided among them.
        workers: the workers.

    Raises:
        InputError: a first dim that is not a multiple of the number of workers.

    >>> from jaxdist.core.workers import simulated
    >>> summing = Iteration(lambda start, part: start, lambda state, part: (state + part.sum(), Residuals(0, 0, 0, 0)))
    >>> data = np.arange(4.0, dtype=np.float32)
    >>> summed = program(summing, jnp.zeros(()), data, simulated(2))
    >>> summed.step(summed.init(jnp.zeros(())), data)[0]
    Array([1., 5.], dtype=float32)
    """
    for path, x in jax.tree_util.tree_flatten_with_path(data)[0]:
        if x.ndim == 0 or x.shape[0] % workers.count:
            raise InputError(
                f'data{jax.tree_util.keystr(path)} has shape {x.shape}, whose first dim must be a multiple of '
                f'{workers.count}, the number of workers; pad with examples of weight 0'
            )
    part = local_shapes(data, workers.count)

    def init(start: Any) -> Any:
        return iteration.init(start, part)

    layout = find_layout(init, iteration.step, workers, (start,), data)
    return build_program(init, iteration.step, layout, workers, (start,))


@renamed_arguments(where='workers')
def run(iteration: Iteration, start: Any, data: Data, workers: Workers, most: int = 1000) -> Outcome:
    """Iterates until both residuals are within their thresholds, or for `most` iterations.

    Args:
        iteration: the method.
        start: the starting point, the same for every worker; see the method.
        data: the data of all workers, a pytree of arrays whose first dim is divided among them.
        workers: the workers.
        most: the largest number of iterations.

    Raises:
        InputError: a first dim that is not a multiple of the number of workers, numbers that are not finite in `start`
            or `data`, or `most` below 1.
        FloatingPointError: a residual that is not finite: the iteration diverges, or a local solver does.

    >>> from jaxdist.core.workers import simulated
    >>> halving = Iteration(lambda start, part: start, lambda x, part: (x / 2, Residuals(x / 2, 0.0, 0.1, 0.1)))
    >>> outcome = run(halving, np.float32(1.0), np.zeros(2), simulated(2))
    >>> outcome.state, outcome.history.primal, outcome.converged
    (Array(0.0625, dtype=float32), array([0.5   , 0.25  , 0.125 , 0.0625], dtype=float32), True)
    """
    if most < 1:
        raise InputError(f'most={most} must be 1 iteration or more')
    start, data = jax.tree.map(jnp.asarray, start), _placed(data, workers)
    _check_finite('start', start)
    _check_finite('data', data)
    compiled = program(iteration, start, data, workers)
    state = compiled.init(start)
    rows: list[Residuals] = []
    while len(rows) < most and not (rows and rows[-1].small):
        state, residuals = compiled.step(state, data)
        rows.append(Residuals(*(x[0] for x in jax.device_get(residuals))))  # [W] each, the same on all workers
        if not np.isfinite(rows[-1]).all():
            raise FloatingPointError(
                f'iteration {len(rows)} of at most {most} gives residuals that are not finite: {_text(rows[-1])}. The '
                'steps are too long for this problem, or a local solver fails on it'
            )
    return Outcome(state, Residuals(*map(np.array, zip(*rows, strict=True))), bool(rows[-1].small))


def _placed(data: Data, workers: Workers) -> Data:
    """The data on the workers' devices, transferred once for all iterations."""
    # An uneven first dim cannot be placed: `program` refuses it with a better message than `device_put`.
    if isinstance(workers.mesh, Mesh) and all(
        x.shape[:1] and x.shape[0] % workers.count == 0 for x in jax.tree.leaves(data)
    ):
        return jax.device_put(data, NamedSharding(workers.mesh, PartitionSpec(workers.axis)))
    return jax.tree.map(jnp.asarray, data)


def _check_finite(name: str, tree: Any) -> None:
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(x.dtype, jnp.inexact) and not bool(jnp.isfinite(x).all()):
            count = int((~jnp.isfinite(x)).sum())
            raise InputError(f'{name}{jax.tree_util.keystr(path)} has {count} numbers that are not finite')


def _text(residuals: Residuals) -> str:
    return ', '.join(f'{name} {float(x):.3g}' for name, x in residuals._asdict().items())
