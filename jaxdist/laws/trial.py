"""A trial: runs an update on some workers with known gradients, and records what laws compare."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist.core import workers
from jaxdist.core.program import Program, update_program
from jaxdist.core.types import Params
from jaxdist.core.workers import Workers

SHAPES = {'w': (31, 43), 'b': (3,), 's': ()}
"""Shapes that no number of workers divides, and a scalar. `w` fills several blocks of 256, enough for a few workers."""

STEPS = 12
"""The number of steps of a path."""


class Path(NamedTuple):
    """The record of a run, in NumPy; T steps, W workers.

    Attributes:
        gradients: each worker's incoming updates, [T, W, ...].
        updates: each worker's outgoing updates, [T, W, ...].
        params: each worker's parameters before the first step and after every one, [T + 1, W, ...].
        state: the program's last state, `(params, opt_state)`, in the program's layout.
    """

    gradients: optax.Updates
    updates: optax.Updates
    params: Params
    state: Any


@dataclass(frozen=True, eq=False)
class Trial:
    """An update under test.

    Attributes:
        update: the optax transformation.
        count: the number of workers.
        shapes: shapes of the parameters by name.
        dtype: dtype of the parameters and gradients.
        seed: seed of the random gradients.
        axis: the worker axis that the update communicates over.
    """

    update: optax.GradientTransformation
    count: int = 4
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    dtype: Any = jnp.float32
    seed: int = 0
    axis: str = 'workers'

    @cached_property
    def simulated(self) -> Program[Any]:
        """The update as a program with simulated workers."""
        return self.program(workers.simulated(self.count, self.axis))

    @cached_property
    def on_mesh(self) -> Program[Any]:
        """The update as a program on a mesh with one device a worker.

        Raises:
            InputError: there are fewer devices.
        """
        mesh = jax.make_mesh((self.count,), (self.axis,), axis_types=(jax.sharding.AxisType.Auto,))
        return self.program(workers.on_mesh(mesh, self.axis))

    @cached_property
    def traces(self) -> list[int]:
        """One entry for each time that `counted_step` was traced."""
        return []

    @cached_property
    def counted_step(self) -> Any:
        """The simulated program's step, jitted without donation; every trace is recorded in `traces`."""
        return self.jitted(lambda: self.traces.append(1))

    def jitted(self, on_trace: Callable[[], None] = lambda: None) -> Any:
        """The simulated program's step, newly jitted without donation; `on_trace` is called at every trace."""

        def run(state: Any, batch: Any) -> Any:
            on_trace()
            return self.simulated.run(state, batch)

        return jax.jit(run)

    @cached_property
    def path(self) -> Path:
        """`STEPS` steps with random gradients and simulated workers."""
        return self.run(self.gradients(STEPS))

    def long_path(self, steps: int) -> Path:
        """A path of at least `steps` steps: `path`, unless that is shorter."""
        return self.path if steps <= STEPS else self.run(self.gradients(steps))

    def program(self, workers: Workers) -> Program[Any]:
        """`step((params, opt_state), gradients) -> (state, (updates, params))` for these workers."""
        return update_program(self.update, self.start, self.batch(0), workers)

    def start(self) -> Params:
        """The initial parameters, random and the same on every worker."""
        return jax.tree.map(lambda g: jnp.asarray(g[0, 0]), self.gradients(1, seed=-1))

    def gradients(self, steps: int, seed: int = 0) -> optax.Updates:
        """Random gradients [steps, W, ...], whose magnitude differs much between leaves."""
        rng = np.random.default_rng([self.seed, seed + 1])
        normal = lambda i, s: rng.normal(size=(steps, self.count, *s)) * 4.0**-i  # noqa: E731
        return {name: np.asarray(normal(i, s), self.dtype) for i, (name, s) in enumerate(self.shapes.items())}

    def batch(self, t: int) -> optax.Updates:
        """The input of the program's step number t: random gradients [W, ...]."""
        return jax.tree.map(lambda g: g[t], self.gradients(t + 1))

    def run(self, gradients: optax.Updates, program: Program[Any] | None = None) -> Path:
        """Runs one step for each row of `gradients` [T, W, ...].

        Without a program, workers are simulated and states are not donated.
        """
        init, step = (self.simulated.init, self.counted_step) if program is None else (program.init, program.step)
        state = init()
        first = jax.tree.map(lambda p: np.broadcast_to(p, (self.count, *p.shape)), self.start())
        updates, params = [], [first]
        for t in range(len(jax.tree.leaves(gradients)[0])):
            state, out = step(state, jax.tree.map(lambda x, t=t: x[t], gradients))
            out = jax.device_get(out)
            updates.append(out[0])
            params.append(out[1])
        stack = lambda rows: jax.tree.map(lambda *x: np.stack(x), *rows)  # noqa: E731
        return Path(gradients, stack(updates), stack(params), state)


def mean_rows(tree: Any) -> Any:
    """The mean over workers of [T, W, ...] in float64, broadcast to [T, W, ...].

    >>> mean_rows(np.array([[1.0, 3.0]]))
    array([[2., 2.]])
    """
    return jax.tree.map(lambda x: np.broadcast_to(x.astype(np.float64).mean(1, keepdims=True), x.shape), tree)


def mean_residual(residual: Callable[[Any], Any], path: Path) -> Any:
    """The mean over workers of the last residuals, in the shape of the parameters; zeros for a leaf without one.

    >>> path = Path((), (), params={'w': np.ones((2, 3, 1))}, state=((), {'w': np.arange(3.0)[:, None]}))
    >>> mean_residual(lambda state: state, path)
    {'w': array([1.])}
    """
    like: Any = jax.tree.structure(path.params)
    leaves = zip(like.flatten_up_to(residual(path.state[1])), jax.tree.leaves(path.params), strict=True)
    return like.unflatten(
        [np.zeros(p.shape[2:]) if e is None else np.asarray(e, np.float64).mean(0) for e, p in leaves]
    )


def largest(tree: Any) -> float:
    """The largest magnitude in any leaf; NaN if there is one.

    >>> largest([np.array([1, -2]), np.zeros(0)])
    2.0
    """
    return float(np.max([np.abs(x.astype(np.float64)).max(initial=0) for x in jax.tree.leaves(tree)]))
