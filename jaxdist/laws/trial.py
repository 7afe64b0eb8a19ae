"""A trial: an update that runs on some workers with known gradients, so that laws can look at what it does."""

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
from jaxdist.core.workers import Workers

SHAPES = {'w': (31, 43), 'b': (3,), 's': ()}
"""Shapes that no number of workers divides, and a scalar; entries for several workers even where 256 share a scale."""

STEPS = 12
"""How long a path is."""


class Path(NamedTuple):
    """What a run did, in NumPy; T steps, W workers.

    Attributes:
        gradients: what each worker put in, [T, W, ...].
        updates: what each worker got back, [T, W, ...].
        params: each worker's parameters before the first step and after every one, [T + 1, W, ...].
        state: the program's last state, `(params, opt_state)`, in its own layout.
    """

    gradients: Any
    updates: Any
    params: Any
    state: Any


@dataclass(frozen=True, eq=False)
class Trial:
    """An update on trial.

    Attributes:
        update: the optax transformation.
        count: the number of workers.
        shapes: of the parameters.
        dtype: of the parameters and gradients.
        seed: of the random gradients.
        axis: the worker axis that the update talks over.
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
    def placed(self) -> Program[Any]:
        """The update as a program on a mesh of as many devices.

        Raises:
            InputError: there are fewer devices.
        """
        mesh = jax.make_mesh((self.count,), (self.axis,), axis_types=(jax.sharding.AxisType.Auto,))
        return self.program(workers.on_mesh(mesh, self.axis))

    @cached_property
    def traces(self) -> list[int]:
        """One entry for each time that `counted` was traced."""
        return []

    @cached_property
    def counted(self) -> Any:
        """The simulated program's step, jitted without donation; every trace is noted in `traces`."""
        return self.jitted(lambda: self.traces.append(1))

    def jitted(self, note: Callable[[], None] = lambda: None) -> Any:
        """The simulated program's step, jitted afresh without donation; `note` is called at every trace."""

        def run(state: Any, batch: Any) -> Any:
            note()
            return self.simulated.run(state, batch)

        return jax.jit(run)

    @cached_property
    def path(self) -> Path:
        """Some steps with random gradients and simulated workers."""
        return self.run(self.gradients(STEPS))

    def lasting(self, steps: int) -> Path:
        """`path`, or a longer one where it has fewer steps: for laws on what happens late."""
        return self.path if steps <= STEPS else self.run(self.gradients(steps))

    def program(self, where: Workers) -> Program[Any]:
        """`step((params, opt_state), gradients) -> (state, (updates, params))`, all per worker."""
        return update_program(self.update, self.start, self.batch(0), where)

    def start(self) -> Any:
        """The parameters at the beginning, the same on every worker."""
        return jax.tree.map(lambda g: jnp.asarray(g[0, 0]), self.gradients(1, seed=-1))

    def gradients(self, steps: int, seed: int = 0) -> Any:
        """Random gradients [steps, W, ...] of very different sizes from leaf to leaf."""
        rng = np.random.default_rng([self.seed, seed + 1])
        normal = lambda i, s: rng.normal(size=(steps, self.count, *s)) * 4.0**-i  # noqa: E731
        return {name: np.asarray(normal(i, s), self.dtype) for i, (name, s) in enumerate(self.shapes.items())}

    def batch(self, t: int) -> Any:
        """What the program's step number t is given: random gradients [W, ...]."""
        return jax.tree.map(lambda g: g[t], self.gradients(t + 1))

    def run(self, gradients: Any, program: Program[Any] | None = None) -> Path:
        """Runs one step for each row of `gradients` [T, W, ...].

        Without a program the workers are simulated, and states are not donated.
        """
        start, step = (self.simulated.init, self.counted) if program is None else (program.init, program.step)
        state = start()
        begin = jax.tree.map(lambda p: np.broadcast_to(p, (self.count, *p.shape)), self.start())
        updates, params = [], [begin]
        for t in range(len(jax.tree.leaves(gradients)[0])):
            state, out = step(state, jax.tree.map(lambda x, t=t: x[t], gradients))
            out = jax.device_get(out)
            updates.append(out[0])
            params.append(out[1])
        stack = lambda rows: jax.tree.map(lambda *x: np.stack(x), *rows)  # noqa: E731
        return Path(gradients, stack(updates), stack(params), state)


def mean_rows(tree: Any) -> Any:
    """The mean over workers of [T, W, ...] in float64, kept as [T, W, ...].

    >>> mean_rows(np.array([[1.0, 3.0]]))
    array([[2., 2.]])
    """
    return jax.tree.map(lambda x: np.broadcast_to(x.astype(np.float64).mean(1, keepdims=True), x.shape), tree)


def mean_residual(residual: Callable[[Any], Any], path: Path) -> Any:
    """The mean over workers of what is held at the end, in the shape of the parameters; zeros where nothing is.

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
