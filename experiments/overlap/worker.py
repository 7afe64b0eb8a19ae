"""One of the two workers of `overlap.py`, started in a network namespace; requests and answers are lines of JSON.

Each worker has two devices. The first devices of both workers are the mesh that computes, the second devices the mesh
that communicates.
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
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.peers import join
from jaxdist.core import collectives, workers
from jaxdist.core.gradient import gradients
from jaxdist.core.types import Task
from jaxdist.models import Perceptron
from jaxdist.training.step import make_step

MODEL, TASK, RATE = Perceptron((1000, 924)), Task('classes', (64,), 10), 0.1
DELAYED = f'delay(steps=1) | mean() | sgd({RATE})'
PORT = 9913


class Worker:
    """The worker's state between requests; each method is one request."""

    def __init__(self, me: int, address: str) -> None:
        self.me, self.address = me, address
        self.programs: dict[str, Any] = {}
        self.states: dict[str, Any] = {}

    def join(self) -> dict[str, Any]:
        """Joins the other worker, and makes the two meshes and the programs of the divided step."""
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
        """Divides the step into three programs: the gradient, the mean of the previous gradient, and the update."""
        gradient = gradients(self.model.loss, 1, None)

        def local(params: Any, batch: Any) -> Any:
            grads = gradient(collectives.pvary(params), batch, jax.random.key(0))[2]
            return jax.tree.map(lambda g: g[None], grads)

        def mean(queue: Any) -> Any:
            return collectives.pmean(jax.tree.map(lambda g: g[0], queue))

        rows, replicated = jax.P(collectives.AXIS), jax.P()
        self.gradient = jax.jit(jax.shard_map(local, mesh=self.computing, in_specs=(replicated, rows), out_specs=rows))
        self.mean = jax.jit(jax.shard_map(mean, mesh=self.communicating, in_specs=rows, out_specs=replicated))
        self.descend = jax.jit(lambda params, due: jax.tree.map(lambda p, g: p - RATE * g, params, due))

    def load(self, rows: int) -> dict[str, Any]:
        """Makes a random batch of `rows` examples per worker, the same in every run."""
        rng = np.random.default_rng(0)
        whole = {'x': rng.normal(size=(2 * rows, 64)), 'y': rng.integers(0, 10, 2 * rows)}
        sharding = NamedSharding(self.computing, jax.P(collectives.AXIS))
        self.batch = {
            name: jax.make_array_from_callback(x.shape, sharding, lambda at, x=x: x[at])
            for name, x in (('x', whole['x'].astype(np.float32)), ('y', whole['y'].astype(np.int32)))
        }
        return {}

    def build(self, update: str) -> dict[str, Any]:
        """Compiles the whole step of a line as one program, on the mesh that computes."""
        mesh_workers = workers.on_mesh(self.computing)
        model, batch = self.model, self.batch
        program = make_step(model.loss, model.init, line.build(update), batch, mesh_workers, guard=False)
        self.programs[update] = program
        self.restart(update)
        return {}

    def restart(self, variant: str) -> dict[str, Any]:
        """Resets a variant to the initial state, the same for all."""
        if variant in self.programs:
            self.states[variant] = self.programs[variant].init(jax.random.key(1))
        else:
            params = self.programs[DELAYED].init(jax.random.key(1)).params
            rows = NamedSharding(self.communicating, jax.P(collectives.AXIS))
            zeros = jax.jit(lambda: jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params), out_shardings=rows)
            self.states[variant] = params, zeros()
        jax.block_until_ready(self.states[variant])
        return {}

    def take(self, variant: str, steps: int) -> dict[str, float]:
        """Takes steps of a variant; answers with the times of begin and end by the monotonic clock, the same for both
        processes, and with the processor time of this one.
        """
        step: Callable[[Any], Any] = getattr(self, f'_{variant}', None) or (lambda state: self._whole(variant, state))
        state = self.states[variant]
        busy, begin = time.process_time(), time.monotonic()
        for _ in range(steps):
            state = jax.block_until_ready(step(state))
        end, busy = time.monotonic(), time.process_time() - busy
        self.states[variant] = state
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
        """Runs both programs concurrently; the step ends when both have ended and the parameters are updated."""
        params, queue = state
        mean = self.mean(queue)
        grads = self.gradient(params, self.batch)
        return self._joined(params, mean, grads)

    def _in_turn(self, state: Any) -> Any:
        """As `_together`, but one program after the other."""
        params, queue = state
        mean = jax.block_until_ready(self.mean(queue))
        grads = self.gradient(params, self.batch)
        return self._joined(params, mean, grads)

    def _joined(self, params: Any, mean: Any, grads: Any) -> Any:
        """The parameters after the mean of the previous gradients, and the new gradients as the queue."""
        mean = moved(jax.block_until_ready(mean), self.computing)
        return self.descend(params, mean), moved(jax.block_until_ready(grads), self.communicating)

    def agree(self, steps: int) -> dict[str, float]:
        """Compares the divided step to the whole one: the largest difference of their parameters after some steps, and
        the largest change of a parameter.
        """
        for variant in (DELAYED, 'together'):
            self.restart(variant)
        start = local_arrays(self.states[DELAYED].params)
        for variant in (DELAYED, 'together'):
            self.take(variant, steps)
        one, other = local_arrays(self.states[DELAYED].params), local_arrays(self.states['together'][0])
        return {'apart': largest(one, other), 'moved': largest(one, start)}


def moved(tree: Any, mesh: Mesh) -> Any:
    """The same values on this worker's device of another mesh."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())

    def move(x: jax.Array) -> jax.Array:
        piece = jax.device_put(x.addressable_data(0), device)
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(mesh, x.sharding.spec), [piece])

    return jax.tree.map(move, tree)


def local_arrays(tree: Any) -> list[np.ndarray]:
    """The leaves' data on this process."""
    return [np.array(x.addressable_data(0)) for x in jax.tree.leaves(tree)]


def largest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest absolute difference of two entries."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def main() -> None:
    me, address = sys.argv[1:]
    # Libraries print to stdout too, so stdout is redirected to stderr, and answers go to a copy of it.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    worker = Worker(int(me), address)
    for request in sys.stdin:
        name, *args = json.loads(request)
        print(json.dumps(getattr(worker, name)(*args)), file=answers, flush=True)


if __name__ == '__main__':
    main()
