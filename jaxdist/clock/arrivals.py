"""The table of arrivals at a server: which worker's message comes when, and which version it was taken of.

Times do not depend on values, so the table is made on the host, before or beside the training. A rule says what the
server does with a message, and who begins to compute next.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from jaxdist.core.errors import InputError

Seconds = Callable[[int, int], float]
"""`(worker, turn) -> seconds` that a worker computes."""


class Arrival(NamedTuple):
    """A row of the table: a message that arrives; at the same time they are ordered by worker.

    Attributes:
        start: when its worker began to compute, in seconds.
        time: when it arrives.
        worker: whose it is.
        turn: how many its worker began before it: so it says which data it used.
        read: the version of the parameters that it was taken of: updates applied before it was read.
        version: updates applied before it arrives.
        weight: its weight in the sum of messages of which the next update is; 0 if it is discarded.
        closes: whether the update is applied after it.
        slot: where the version that it was taken of is kept.
        keep: where the present version is kept after it, for those who then begin; -1 if nobody does with a new one.
    """

    start: float
    time: float
    worker: int
    turn: int
    read: int
    version: int
    weight: float
    closes: bool
    slot: int
    keep: int

    @property
    def staleness(self) -> int:
        """Updates that were applied between reading and arrival."""
        return self.version - self.read


class Rule(Protocol):
    """What a server does; it has state, so each table needs a new one."""

    def arrive(self, server: 'Server', worker: int) -> None:
        """What happens when this worker's message has arrived: `server.last` is its row, not yet counted."""

    def ring(self, server: 'Server') -> None:
        """What happens when the time has come that the rule has set by `server.set_timer`."""


class _Computing(NamedTuple):
    start: float
    turn: int
    read: int
    slot: int


class Server:
    """A server and its workers, event by event: what a rule asks and commands.

    Args:
        workers: the number of workers W.
        seconds: how long each computes.
        rule: what the server does.
        latency: seconds from a worker to the server's link.
        message: seconds that a message, and the answer to it, take the server's link, one after the other.
    """

    def __init__(self, workers: int, seconds: Seconds, rule: Rule, latency: float = 0.0, message: float = 0.0) -> None:
        self.workers, self.seconds, self.rule = workers, seconds, rule
        self.latency, self.message = latency, message
        self.now, self.version = 0.0, 0
        self._free = 0.0  # when the server's link is free
        self.rows: list[Arrival] = []
        self.closed = 0
        """Rows up to the last update: the later ones can still change."""
        self._events: list[tuple[float, int, int, bool]] = []
        """`(time, worker, turn, whether its message has arrived)`; the timer comes last: it counts as worker W."""
        self._computing: dict[int, _Computing] = {}
        self._turns: Counter[int] = Counter()
        self._readers: Counter[int] = Counter({0: 0})  # of each slot
        self._present = 0  # the slot of the present version; -1 if it is not kept
        for worker in range(workers):
            self.start(worker)

    @property
    def open(self) -> int:
        """Messages that count in the next update so far."""
        return sum(row.weight > 0 for row in self.rows[self.closed :])

    @property
    def computing(self) -> dict[int, int]:
        """Who computes, and of which version."""
        return {worker: each.read for worker, each in self._computing.items()}

    def advance(self) -> None:
        """The next event.

        Raises:
            InputError: nobody computes any more.
        """
        if not self._events:
            raise InputError('nobody computes any more: the rule waits for more messages than there are workers')
        self.now, worker, turn, arrived = heapq.heappop(self._events)
        if worker == self.workers:
            self.rule.ring(self)
        elif worker not in self._computing or self._computing[worker].turn != turn:  # it was cancelled
            return
        elif not arrived and self.latency + self.message > 0:
            self._free = max(self.now + self.latency, self._free) + self.message
            heapq.heappush(self._events, (self._free, worker, turn, True))
        else:
            start, turn, read, slot = self._leave(worker)
            row = Arrival(start, self.now, worker, turn, read, self.version, 0.0, False, slot, -1)
            self.rows.append(row)
            self.rule.arrive(self, worker)

    def accept(self, weight: float) -> None:
        """The message that has just arrived counts with this weight."""
        self.rows[-1] = self.rows[-1]._replace(weight=weight)

    def update(self, scale: float = 1.0) -> list[int]:
        """An update is applied of all messages since the last one, with their weights times `scale`; whose they are."""
        group = self.rows[self.closed :]
        self.rows[self.closed :] = [row._replace(weight=row.weight * scale) for row in group]
        self.rows[-1] = self.rows[-1]._replace(closes=True)
        self.closed, self.version, self._present = len(self.rows), self.version + 1, -1
        return [row.worker for row in group if row.weight > 0]

    def start(self, worker: int) -> None:
        """A worker begins with the present version; what it computes now is cancelled."""
        if worker in self._computing:
            self._leave(worker)
        if self._present < 0:
            self._present = next(slot for slot in range(self.workers + 1) if not self._readers[slot])
            self.rows[-1] = self.rows[-1]._replace(keep=self._present)
        self._readers[self._present] += 1
        turn = self._turns[worker]
        self._turns[worker] += 1
        self._computing[worker] = _Computing(self.now, turn, self.version, self._present)
        heapq.heappush(self._events, (self.now + self.seconds(worker, turn), worker, turn, False))

    def start_all(self) -> None:
        """All begin anew with the present version."""
        for worker in list(self._computing):
            self._leave(worker)
        for worker in range(self.workers):
            self.start(worker)

    def set_timer(self, seconds: float) -> None:
        """`rule.ring` is called after so many seconds, and after all that arrives until then."""
        heapq.heappush(self._events, (self.now + seconds, self.workers, 0, True))

    def _leave(self, worker: int) -> _Computing:
        left = self._computing.pop(worker)
        self._readers[left.slot] -= 1
        return left


def arrivals(rule: Rule, workers: int, seconds: Seconds, rows: int) -> list[Arrival]:
    """The first rows of the table; more rows begin with the same ones.

    Args:
        rule: what the server does; a new one.
        workers: the number of workers W.
        seconds: how long each computes.
        rows: the number of rows.

    Raises:
        InputError: nobody computes any more, or a time is not above 0.

    >>> from jaxdist.clock.rules import k_async
    >>> table = arrivals(k_async(k=1).begin(2), 2, lambda worker, turn: 1.0 + worker, rows=4)
    >>> [(row.time, row.worker, row.staleness) for row in table]
    [(1.0, 0, 0), (2.0, 0, 0), (2.0, 1, 2), (3.0, 0, 1)]
    """
    server = Server(workers, seconds, rule)
    while server.closed < rows:
        server.advance()
    return server.rows[:rows]
