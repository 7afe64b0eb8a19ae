"""Reference implementation of arrivals at a server, by a heap and dicts.

A rule decides what the server does with a message, and who computes next, from which version of the parameters. Times
do not depend on values, so the table of arrivals comes first, and `numpy_asynchronous` trains by it.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

Seconds = Callable[[int, int], float]
"""Seconds that a worker computes, from its number and its turn."""


class Computation(NamedTuple):
    """A worker's computation that began at `start` from version `read`; `turn` counts those that the worker began."""

    start: float
    worker: int
    turn: int
    read: int


class Row(NamedTuple):
    """The arrival of a message at the server; rows are in the order of arrival, at the same time by worker.

    Attributes:
        start, worker, turn, read: the computation's.
        time: when it arrives.
        version: updates applied before it arrives.
        weight: in the sum of messages that the next update is applied from; 0 if it is discarded.
        closes: whether the update is applied after this row, with no other row before it.
        partner: with whom the worker averages (`Pairs`).
    """

    start: float
    time: float
    worker: int
    turn: int
    read: int
    version: int
    weight: float
    closes: bool
    partner: int = -1

    @property
    def staleness(self) -> int:
        """Updates applied between reading and arrival."""
        return self.version - self.read


class Simulation:
    """Workers and a server: a heap of arrivals, and a dict of who computes what."""

    def __init__(self, workers: int, seconds: Seconds) -> None:
        self.workers, self.seconds = workers, seconds
        self.now, self.version = 0.0, 0
        self.heap: list[tuple[float, int, int]] = []  # (time, worker, turn)
        self.computing: dict[int, Computation] = {}
        self.turns: Counter[int] = Counter()
        self.rows: list[Row] = []  # up to the last update
        self.open: list[Row] = []  # since the last update
        self.cancelled: list[Computation] = []

    def run(self, rule: 'Rule', rows: int) -> list[Row]:
        """The first `rows` rows."""
        for worker in range(self.workers):
            self.start(worker)
        while len(self.rows) < rows:
            if not self.heap:
                raise ValueError('no worker computes: the rule waits for more messages than there are workers')
            self.now, worker, turn = heapq.heappop(self.heap)
            if worker in self.computing and self.computing[worker].turn == turn:
                rule(self, self.computing.pop(worker))
        return self.rows[:rows]

    def start(self, worker: int) -> None:
        """The worker begins from the present version; what it computes now is cancelled."""
        if worker in self.computing:
            self.cancelled.append(self.computing[worker])
        self.schedule(worker, self.seconds(worker, self.turns[worker]))

    def schedule(self, worker: int, seconds: float) -> None:
        """An arrival after some seconds. Worker W is the server's timer: at the same time it is the last."""
        turn = self.turns[worker]
        self.turns[worker] += 1
        self.computing[worker] = Computation(self.now, worker, turn, self.version)
        heapq.heappush(self.heap, (self.now + seconds, worker, turn))

    def receive(self, done: Computation, weight: float, partner: int = -1) -> None:
        """The server takes a message into its sum with this weight."""
        start, worker, turn, read = done
        self.open.append(Row(start, self.now, worker, turn, read, self.version, weight, False, partner))

    def close(self) -> list[int]:
        """The server applies an update; the workers of its messages."""
        group = [*self.open[:-1], self.open[-1]._replace(closes=True)]
        self.rows.extend(group)
        self.open = []
        self.version += 1
        return [row.worker for row in group]


Rule = Callable[[Simulation, Computation], None]
"""What happens when a computation is done. A rule may have state: each simulation needs a new one."""


class KSync:
    """The first K messages of each version; the rest is cancelled. K = W: BSP; K < W: backup workers (1604.00981)."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        simulation.receive(done, 1 / self.k)
        if len(simulation.open) == self.k:
            simulation.close()
            for worker in range(simulation.workers):
                simulation.start(worker)


class KBatchSync(KSync):
    """Any K messages of each version, several of one worker too: Rennala SGD (Tyurin and Richtarik, 2305.12387)."""

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        super().__call__(simulation, done)
        if simulation.open:
            simulation.start(done.worker)


class KAsync(KSync):
    """An update from K messages, of any version; their workers begin at the update (Dutta et al. 2018, 1803.01113)."""

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        simulation.receive(done, 1 / self.k)
        if len(simulation.open) == self.k:
            for worker in simulation.close():
                simulation.start(worker)


class KBatchAsync(KSync):
    """An update from K messages, of any version; each worker goes on at once (FedBuff, arXiv 2106.06639)."""

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        simulation.receive(done, 1 / self.k)
        if len(simulation.open) == self.k:
            simulation.close()
        simulation.start(done.worker)


class Ssp:
    """Stale synchronous parallel (Ho et al. 2013): who is more than `bound` messages ahead of the slowest waits."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.done: Counter[int] = Counter()
        self.waiting: set[int] = set()

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        simulation.receive(done, 1.0)
        simulation.close()
        self.done[done.worker] += 1
        self.waiting.add(done.worker)
        slowest = min(self.done[worker] for worker in range(simulation.workers))
        for worker in sorted(self.waiting):
            if self.done[worker] - slowest <= self.bound:
                self.waiting.remove(worker)
                simulation.start(worker)


class Ringmaster:
    """Discards messages whose staleness is `limit` or more (Maranjyan et al. 2025, arXiv 2501.16168).

    With `stop`, a computation is cancelled and begun again as soon as its version is so old (algorithm 5).
    """

    def __init__(self, limit: float, stop: bool = False) -> None:
        self.limit, self.stop = limit, stop

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        accepted = simulation.version - done.read < self.limit
        simulation.receive(done, float(accepted))
        if accepted:
            simulation.close()
        simulation.start(done.worker)
        for other in list(simulation.computing.values()) if self.stop else []:
            if simulation.version - other.read >= self.limit:
                simulation.start(other.worker)


class Quorum:
    """The mean of what arrives until `grace` seconds after the K-th message, the end included; then all of them begin.

    As in Decoupled DiLoCo (arXiv 2604.21428), with a grace time that is constant, also where all workers have arrived.
    """

    def __init__(self, k: int, grace: float) -> None:
        self.k, self.grace = k, grace

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        if done.worker < simulation.workers:
            simulation.receive(done, 0.0)
            if len(simulation.open) == self.k:
                simulation.schedule(simulation.workers, self.grace)
            return
        simulation.open = [row._replace(weight=1 / len(simulation.open)) for row in simulation.open]
        for worker in simulation.close():
            simulation.start(worker)


class Pairs:
    """AD-PSGD (Lian et al. 2018, arXiv 1710.06952): each arrival is an update; `partner(update, worker)` is drawn."""

    def __init__(self, partner: Callable[[int, int], int]) -> None:
        self.partner = partner

    def __call__(self, simulation: Simulation, done: Computation) -> None:
        simulation.receive(done, 1.0, self.partner(simulation.version, done.worker))
        simulation.close()
        simulation.start(done.worker)
