"""One of the two workers of `overlap.py`, which starts it inside its namespace and tells it what to do, a line of JSON
each; it answers each with another.

It has two devices: with the other worker's first one the first makes the mesh that computes, and the second likewise
the mesh that communicates.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxdist import line
from jaxdist.cluster.processes import Cluster, join
from jaxdist.core import collectives, workers
from jaxdist.core.gradient import gradients
from jaxdist.core.types import Task
from jaxdist.models import Perceptron
from jaxdist.training.step import make_step

MODEL, TASK, RATE = Perceptron((1000, 924)), Task('classes', (64,), 10), 0.1
LATE = f'delay(steps=1) | mean() | sgd({RATE})'
PORT = 9913


class Worker:
    """What the worker holds between two orders."""

    def __init__(self, me: int, address: str) -> None:
        self.me, self.address = me, address
        self.programs: dict[str, Any] = {}
        self.states: dict[str, Any] = {}

    def join(self) -> dict[str, Any]:
        """Syncs the other worker, and makes the two meshes and the programs of the divided step."""
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', 2)
        join(Cluster(f'{self.address}:{PORT}', 2, self.me))
        devices = np.array(jax.devices()).reshape(2, 2)
        self.computing, self.communicating = (
            Mesh(devices[:, i], (collectives.AXIS,), axis_types=(AxisType.Auto,)) for i in (0, 1)
        )
        self.model = MODEL.build(TASK)
        self._divide()
        return {'jax': jax.__version__, 'python': sys.version.split()[0], 'parameters': self._count()}

    def _count(self) -> int:
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(self.model.init, jax.random.key(0))))

    def _divide(self) -> None:
        """The step in three programs: the gradient, the mean of an earlier one, and what joins them."""
        gradient = gradients(self.model.loss, 1, None)

        def local(params: Any, batch: Any) -> Any:
            found = gradient(collectives.pvary(params), batch, jax.random.key(0))[2]
            return jax.tree.map(lambda g: g[None], found)

        def mean(queue: Any) -> Any:
            return collectives.pmean(jax.tree.map(lambda g: g[0], queue))

        over, all_alike = jax.P(collectives.AXIS), jax.P()
        self.gradient = jax.jit(jax.shard_map(local, mesh=self.computing, in_specs=(all_alike, over), out_specs=over))
        self.mean = jax.jit(jax.shard_map(mean, mesh=self.communicating, in_specs=over, out_specs=all_alike))
        self.descend = jax.jit(lambda params, due: jax.tree.map(lambda p, g: p - RATE * g, params, due))

    def load(self, rows: int) -> dict[str, Any]:
        """Makes a batch of so many examples a worker: random, the same in every run."""
        rng = np.random.default_rng(0)
        whole = {'x': rng.normal(size=(2 * rows, 64)), 'y': rng.integers(0, 10, 2 * rows)}
        cut = NamedSharding(self.computing, jax.P(collectives.AXIS))
        self.batch = {
            name: jax.make_array_from_callback(x.shape, cut, lambda at, x=x: x[at])
            for name, x in (('x', whole['x'].astype(np.float32)), ('y', whole['y'].astype(np.int32)))
        }
        return {}

    def build(self, update: str) -> dict[str, Any]:
        """Compiles the whole step of a line as one program, on the mesh that computes."""
        where = workers.on_mesh(self.computing)
        program = make_step(self.model.loss, self.model.init, line.build(update), self.batch, where, guard=False)
        self.programs[update] = program
        self.restart(update)
        return {}

    def restart(self, way: str) -> dict[str, Any]:
        """Puts a way back to where all begin."""
        if way in self.programs:
            self.states[way] = self.programs[way].init(jax.random.key(1))
        else:
            params = self.programs[LATE].init(jax.random.key(1)).params
            rows = NamedSharding(self.communicating, jax.P(collectives.AXIS))
            zeros = jax.jit(lambda: jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params), out_shardings=rows)
            self.states[way] = params, zeros()
        jax.block_until_ready(self.states[way])
        return {}

    def take(self, way: str, steps: int) -> dict[str, float]:
        """Takes steps in one way; answers with the clock, which both workers share, and with the time that this
        worker's threads had a processor.
        """
        step: Callable[[Any], Any] = getattr(self, f'_{way}', None) or (lambda state: self._whole(way, state))
        state = self.states[way]
        busy, begin = time.process_time(), time.monotonic()
        for _ in range(steps):
            state = jax.block_until_ready(step(state))
        end, busy = time.monotonic(), time.process_time() - busy
        self.states[way] = state
        return {'begin': begin, 'end': end, 'busy': busy}

    def _whole(self, update: str, state: Any) -> Any:
        state, metrics = self.programs[update].step(state, self.batch)
        jax.block_until_ready(metrics)
        return state

    def _computation(self, state: Any) -> Any:
        jax.block_until_ready(self.gradient(state[0], self.batch))
        return state

    def _communication(self, state: Any) -> Any:
        jax.block_until_ready(self.mean(state[1]))
        return state

    def _together(self, state: Any) -> Any:
        """Neither program waits for the other; the step ends when both have, and the parameters have moved."""
        params, queue = state
        due = self.mean(queue)
        found = self.gradient(params, self.batch)
        return self._joined(params, due, found)

    def _in_turn(self, state: Any) -> Any:
        """The same, but for a wait between the two."""
        params, queue = state
        due = jax.block_until_ready(self.mean(queue))
        found = self.gradient(params, self.batch)
        return self._joined(params, due, found)

    def _joined(self, params: Any, due: Any, found: Any) -> Any:
        due = moved(jax.block_until_ready(due), self.computing)
        return self.descend(params, due), moved(jax.block_until_ready(found), self.communicating)

    def agree(self, steps: int) -> dict[str, float]:
        """How far the parameters of the divided step and of jaxdist's are apart after some steps, next to how far they
        moved: the largest of each.
        """
        for way in (LATE, 'together'):
            self.restart(way)
        start = here(self.states[LATE].params)
        for way in (LATE, 'together'):
            self.take(way, steps)
        one, other = here(self.states[LATE].params), here(self.states['together'][0])
        return {'apart': largest(one, other), 'moved': largest(one, start)}


def moved(tree: Any, mesh: Mesh) -> Any:
    """The same values on this worker's device of another mesh."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())

    def move(x: jax.Array) -> jax.Array:
        piece = jax.device_put(x.addressable_data(0), device)
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(mesh, x.sharding.spec), [piece])

    return jax.tree.map(move, tree)


def here(tree: Any) -> list[np.ndarray]:
    return [np.array(x.addressable_data(0)) for x in jax.tree.leaves(tree)]


def largest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest difference of two entries."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def main() -> None:
    me, address = sys.argv[1:]
    # Libraries print too: what they print goes to stderr, and answers alone go where answers are read.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    worker = Worker(int(me), address)
    for order in sys.stdin:
        name, *args = json.loads(order)
        print(json.dumps(getattr(worker, name)(*args)), file=answers, flush=True)


if __name__ == '__main__':
    main()
