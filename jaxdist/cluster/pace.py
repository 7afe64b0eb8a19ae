"""Measures what a process takes for a step, between two records."""

import statistics
import time
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.cluster.phases import PHASES
from jaxdist.cluster.stragglers import Cost, straggler
from jaxdist.cluster.watch import Watch

SIZE = 256
"""Rows of the matrix of the small computation, which takes about a millisecond or less."""
RECORDS = 5
"""Records over which the median of its time is taken: on a busy machine a single one names a process at random."""


class Pace:
    """The costs of this process, for the watch to report; on process 0 also those of the others.

    Args:
        watch: reports them.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.last: tuple[int, float, float] | None = None
        self.compute = jax.jit(lambda x: x @ x @ x)
        self.matrix: jax.Array | None = None
        self.times: deque[float] = deque(maxlen=RECORDS)

    def record(self, step: int) -> dict[str, Any]:
        """Called at each record of a run: what it says of a straggler, on process 0; else {}."""
        now, data = time.monotonic(), PHASES.seconds.get('data', 0.0)
        if self.last is not None and step > self.last[0]:
            steps = step - self.last[0]
            self.times.append(self._small_computation())
            self.watch.cost = Cost(
                (data - self.last[2]) / steps,
                (now - self.last[1]) / steps,
                statistics.median(self.times),
                self.watch.answer_seconds,
            )
            found = straggler({**self.watch.costs, self.watch.coordination.process: self.watch.cost})
        else:
            self._small_computation()  # compiles it
            found = None
        self.last = (step, time.monotonic(), data)
        return {'straggler': found._asdict()} if found and self.watch.coordination.process == 0 else {}

    def _small_computation(self) -> float:
        """Its seconds, the shortest of three: an interruption is no slow device."""
        if self.matrix is None:
            self.matrix = jax.device_put(jnp.ones((SIZE, SIZE)), jax.local_devices()[0])
            jax.block_until_ready(self.compute(self.matrix))
        times = []
        for _ in range(3):
            begin = time.monotonic()
            jax.block_until_ready(self.compute(self.matrix))
            times.append(time.monotonic() - begin)
        return min(times)
