"""Rules of a server: how many messages make an update, and who begins when with which version."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdist.clock.arrivals import Rule, Server
from jaxdist.core.errors import InputError
from jaxdist.core.kinds import rule


class RuleKind(NamedTuple):
    """A rule, for any number of workers that it fits.

    Attributes:
        name: its call, as `ssp(bound=3)`.
        begin: `workers -> rule`, a new one.
    """

    name: str
    begin: Callable[[int], Rule]


class _Counting:
    """An update of K messages."""

    def __init__(self, k: int) -> None:
        self.k = k

    def ring(self, server: Server) -> None:
        """It sets no timer."""


class _KSync(_Counting):
    def arrive(self, server: Server, worker: int) -> None:
        server.accept(1 / self.k)
        if server.open == self.k:
            server.update()
            server.start_all()


class _KBatchSync(_Counting):
    def arrive(self, server: Server, worker: int) -> None:
        server.accept(1 / self.k)
        if server.open < self.k:
            server.start(worker)
            return
        server.update()
        server.start_all()


class _KAsync(_Counting):
    def arrive(self, server: Server, worker: int) -> None:
        server.accept(1 / self.k)
        if server.open == self.k:
            for each in server.update():
                server.start(each)


class _KBatchAsync(_Counting):
    def arrive(self, server: Server, worker: int) -> None:
        server.accept(1 / self.k)
        if server.open == self.k:
            server.update()
        server.start(worker)


class _Ssp(_Counting):
    def __init__(self, bound: float) -> None:
        super().__init__(1)
        self.bound = bound
        self.done: Counter[int] = Counter()
        self.waiting: set[int] = set()

    def arrive(self, server: Server, worker: int) -> None:
        server.accept(1.0)
        server.update()
        self.done[worker] += 1
        self.waiting.add(worker)
        slowest = min(self.done[each] for each in range(server.workers))
        for each in sorted(each for each in self.waiting if self.done[each] - slowest <= self.bound):
            self.waiting.remove(each)
            server.start(each)


class _Ringmaster(_Counting):
    def __init__(self, limit: float, stop: bool) -> None:
        super().__init__(1)
        self.limit, self.stop = limit, stop

    def arrive(self, server: Server, worker: int) -> None:
        if server.rows[-1].staleness < self.limit:
            server.accept(1.0)
            server.update()
        server.start(worker)
        for other, read in server.computing.items() if self.stop else ():
            if server.version - read >= self.limit:
                server.start(other)


class _Quorum:
    def __init__(self, k: int, grace: float) -> None:
        self.k, self.grace = k, grace

    def arrive(self, server: Server, worker: int) -> None:
        server.accept(1.0)
        if server.open == self.k:
            server.set_timer(self.grace)

    def ring(self, server: Server) -> None:
        for each in server.update(1 / server.open):
            server.start(each)


@rule(paper='Chen et al. 2016, arXiv 1604.00981', examples={'k_sync(k=3) | sgd(0.1)': ()})
def k_sync(k: int) -> RuleKind:
    """An update of the first K messages of each version; the others are cancelled, and all begin anew.

    K = W is BSP; with fewer the others are backup workers (Chen et al. 2016, arXiv 1604.00981).

    >>> k_sync(k=2).name
    'k_sync(k=2)'
    """
    return RuleKind(f'k_sync(k={k})', lambda workers: _KSync(_count('k_sync', k, workers)))


@rule(paper='Tyurin and Richtarik 2023, Rennala SGD, arXiv 2305.12387', examples={'k_batch_sync(k=3) | sgd(0.1)': ()})
def k_batch_sync(k: int) -> RuleKind:
    """An update of any K messages of a version, several of one worker too; then all begin anew.

    For SGD it is Rennala SGD (Tyurin and Richtarik 2023, arXiv 2305.12387).

    >>> k_batch_sync(k=2).name
    'k_batch_sync(k=2)'
    """
    return RuleKind(f'k_batch_sync(k={k})', lambda workers: _KBatchSync(_count('k_batch_sync', k)))


@rule(paper='Dutta et al. 2018, arXiv 1803.01113', examples={'k_async(k=1) | sgd(0.1)': ()})
def k_async(k: int) -> RuleKind:
    """An update of K messages of any version; those whose they were begin anew. K = 1 is asynchronous SGD.

    Dutta et al. 2018, arXiv 1803.01113.

    >>> k_async(k=2).name
    'k_async(k=2)'
    """
    return RuleKind(f'k_async(k={k})', lambda workers: _KAsync(_count('k_async', k, workers)))


@rule(paper='Nguyen et al. 2022, FedBuff, arXiv 2106.06639', examples={'k_batch_async(k=3) | sgd(0.1)': ()})
def k_batch_async(k: int) -> RuleKind:
    """An update of K messages of any version; each worker goes on at once (FedBuff, Nguyen et al. 2022, 2106.06639).

    >>> k_batch_async(k=2).name
    'k_batch_async(k=2)'
    """
    return RuleKind(f'k_batch_async(k={k})', lambda workers: _KBatchAsync(_count('k_batch_async', k)))


@rule(paper='Ho et al. 2013, SSP', examples={'ssp(bound=3) | sgd(0.1)': ()})
def ssp(bound: float) -> RuleKind:
    """Each message is an update; who is more than `bound` messages ahead of the slowest waits (Ho et al. 2013).

    >>> ssp(bound=3).name
    'ssp(bound=3)'
    """
    if not bound >= 0:
        raise InputError(f'ssp: bound={bound} must be 0 or more')
    return RuleKind(f'ssp(bound={bound})', lambda workers: _Ssp(bound))


@rule(paper='Maranjyan et al. 2025, arXiv 2501.16168', examples={'ringmaster(limit=4) | sgd(0.1)': ()})
def ringmaster(limit: float, stop: bool = False) -> RuleKind:
    """Each message is an update, unless `limit` updates or more were applied since its version was read.

    Maranjyan et al. 2025, arXiv 2501.16168.

    Args:
        limit: from this staleness on messages are discarded.
        stop: whether a worker begins anew as soon as what it computes would be discarded.

    >>> ringmaster(limit=4).name
    'ringmaster(limit=4)'
    """
    if not limit >= 1:
        raise InputError(f'ringmaster: limit={limit} must be 1 or more')
    return RuleKind(
        f'ringmaster(limit={limit}{", stop=True" if stop else ""})', lambda workers: _Ringmaster(limit, stop)
    )


@rule(paper='Douillard et al. 2026, arXiv 2604.21428', examples={'quorum(k=3, grace=0.01) | sgd(0.1)': ()})
def quorum(k: int, grace: float = 0.0) -> RuleKind:
    """An update of what arrives until `grace` seconds after the K-th message; then all of these workers begin anew.

    As in Decoupled DiLoCo (Douillard et al. 2026, arXiv 2604.21428).

    >>> quorum(k=3, grace=0.5).name
    'quorum(k=3, grace=0.5)'
    """
    if not (np.isfinite(grace) and grace >= 0):
        raise InputError(f'quorum: grace={grace} must be 0 seconds or more')
    return RuleKind(f'quorum(k={k}, grace={grace})', lambda workers: _Quorum(_count('quorum', k, workers), grace))


def _count(name: str, k: int, workers: int | None = None) -> int:
    """Checks a number of messages.

    Raises:
        InputError: it is below 1, or more than ever arrive.
    """
    if not isinstance(k, int) or k < 1:
        raise InputError(f'{name}: k={k} must be a whole number, 1 or more')
    if workers is not None and k > workers:
        raise InputError(f'{name}: k={k} messages never come from {workers} workers that wait: take at most {workers}')
    return k
