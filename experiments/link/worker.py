"""One of the two workers of `measure.py`, started in a network namespace; requests and answers are lines of JSON."""

import json
import os
import socket
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxdist import ledger, line
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.peers import join
from jaxdist.core import mesh, workers
from jaxdist.core.types import Task
from jaxdist.models import Perceptron
from jaxdist.training.step import make_step

ROWS = 8
"""Examples per worker: few, so that computation is short."""
MODEL, TASK = Perceptron((1000, 924)), Task('classes', (64,), 10)
PORTS = {'jax': 9911, 'plain': 9912}


class Worker:
    """The worker's state between requests; each method is one request."""

    def __init__(self, me: int, address: str) -> None:
        self.me, self.address = me, address
        self.socket: socket.socket | None = None
        self.steps: list[Any] = []
        self.states: list[Any] = []
        self.batch: Any = None

    def join(self) -> dict[str, Any]:
        """Joins the other worker, and makes a random batch, the same in every run."""
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', 1)
        join(Cluster(f'{self.address}:{PORTS["jax"]}', 2, self.me))
        self.mesh = mesh.make({'workers': 2})
        rng = np.random.default_rng(0)
        whole = {'x': rng.normal(size=(2 * ROWS, 64)), 'y': rng.integers(0, 10, 2 * ROWS)}
        rows = NamedSharding(self.mesh, jax.P('workers'))
        self.batch = {
            name: jax.make_array_from_callback(x.shape, rows, lambda at, x=x: x[at])
            for name, x in (('x', whole['x'].astype(np.float32)), ('y', whole['y'].astype(np.int32)))
        }
        return {'jax': jax.__version__, 'python': sys.version.split()[0]}

    def build(self, update: str) -> dict[str, int]:
        """Compiles the step of an update line; answers with the bytes that a worker sends in the compiled program."""
        model = MODEL.build(TASK)
        program = make_step(model.loss, model.init, line.build(update), self.batch, workers.on_mesh(self.mesh))
        state = program.init(jax.random.key(0))
        compiled = program.step.lower(state, self.batch).compile()
        self.steps.append(compiled)
        self.states.append(state)
        sent = sum(ledger.totals(ledger.compiled(compiled, self.mesh)).values())
        return {'sent': round(sent), 'parameters': sum(x.size for x in jax.tree.leaves(state.params))}

    def take(self, which: int, steps: int) -> dict[str, float]:
        """Takes steps of one line and waits for each; answers with the times of begin and end by the monotonic clock,
        the same for both processes, and with the processor time of this one.
        """
        busy, begin = time.process_time(), time.monotonic()
        for _ in range(steps):
            self.states[which], metrics = self.steps[which](self.states[which], self.batch)
            jax.block_until_ready((self.states[which], metrics))
        end, busy = time.monotonic(), time.process_time() - busy
        skipped = int(self.states[which].skipped.addressable_data(0))
        return {'begin': begin, 'end': end, 'busy': busy, 'skipped': skipped}

    def plain(self, size: int, ways: int) -> dict[str, float]:
        """Sends bytes through a plain socket: from worker 0 to worker 1, or in both directions at once."""
        if self.socket is None:
            self.socket = self._connect()
        sends, receives = ways == 2 or self.me == 0, ways == 2 or self.me == 1
        begin = time.monotonic()
        if sends:
            thread = threading.Thread(target=self.socket.sendall, args=(bytes(size),))
            thread.start()
        if receives:
            left = size
            while left:
                left -= len(self.socket.recv(min(left, 1 << 20)))
        if sends:
            thread.join()
        return {'begin': begin, 'end': time.monotonic()}

    def _connect(self) -> socket.socket:
        if self.me == 0:
            with socket.create_server((self.address, PORTS['plain'])) as server:
                return server.accept()[0]
        while True:
            try:
                return socket.create_connection((self.address, PORTS['plain']))
            except ConnectionRefusedError:
                time.sleep(0.05)


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
