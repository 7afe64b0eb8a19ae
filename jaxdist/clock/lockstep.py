"""When each worker has taken each step, if workers wait for each other in every one: a max-plus recursion.

A worker computes, and then communicates: with all others, or with its neighbours. It waits until the last of
them is there, and then for the link. What lies ready when a step begins is sent meanwhile.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Communication(NamedTuple):
    """A communication round of one step.

    Attributes:
        seconds: how long a message takes its sender's link, also [W]; a collective of all, when all take part.
        sources: whom each worker hears beside itself, [W, n]; None if it hears all.
        lag: 0 if what is sent is computed in this step. n if it has lain ready since the step n - 1 steps before began:
            1 for this step.
        after: the places, in the step, of those whose results it sends on.
    """

    seconds: float | np.ndarray
    sources: np.ndarray | None = None
    lag: int = 0
    after: tuple[int, ...] = ()


class Times(NamedTuple):
    """When steps end.

    Attributes:
        compute: seconds that each worker computes, [T, W].
        begins: when each worker begins each step, [T + 1, W]; the last row is the end of the run.
        waited: the worker that all waited for in each step, [T]: the last to end its computation; -1 where nobody
            waited.
    """

    compute: np.ndarray
    begins: np.ndarray
    waited: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """Seconds until every worker has taken each step, [T]."""
        return self.begins[1:].max(axis=1)

    @property
    def idle(self) -> float:
        """The share of all workers' time in which they do not compute."""
        return float(1 - self.compute.sum() / (self.begins[-1].max() * self.compute.shape[1]))

    def summary(self) -> dict[str, Any]:
        """Seconds of an average step, the idle share, in which share of steps all wait, and for whom in which of these.

        >>> lockstep(np.array([[1.0, 3.0], [1.0, 3.0]]), [[Communication(0.0)], []]).summary()
        {'seconds_per_step': 3.0, 'idle': 0.33..., 'waits': 0.5, 'waited_for': {1: 1.0}}
        """
        steps = len(self.compute)
        workers, counts = np.unique(self.waited[self.waited >= 0], return_counts=True)
        waits, most = int(counts.sum()), np.argsort(-counts, kind='stable')
        return {
            'seconds_per_step': float(self.ends[-1] / steps),
            'idle': self.idle,
            'waits': waits / steps,
            'waited_for': {int(workers[i]): float(counts[i] / waits) for i in most},
        }


def lockstep(compute: np.ndarray, communications: Sequence[Sequence[Communication]]) -> Times:
    """When each worker has taken each step.

    Args:
        compute: seconds that each worker computes in each step, [T, W].
        communications: those of each step, in order.

    >>> compute = np.array([[1.0, 2.0], [2.0, 1.0]])
    >>> lockstep(compute, [[Communication(0.5)], [Communication(0.5)]]).ends
    array([2.5, 5. ])
    >>> lockstep(compute, [[], []]).ends  # nobody waits
    array([2., 3.])
    >>> lockstep(compute, [[Communication(1.5, lag=1)], [Communication(1.5, lag=1)]]).ends  # sent while they compute
    array([2. , 3.5])
    """
    begins = np.zeros((len(compute) + 1, compute.shape[1]))
    waited = np.full(len(compute), -1)
    free = begins[0]  # when each worker's link is free: it sends one message after the other
    for step, sent in enumerate(communications):
        done = begins[step] + compute[step]
        arrived: dict[int, np.ndarray] = {}
        # What lies ready is sent first.
        for place, each in sorted(enumerate(sent), key=lambda item: item[1].lag == 0):
            ready = begins[max(step - each.lag + 1, 0)] if each.lag else done
            ready = np.maximum.reduce([ready, *(arrived[before] for before in each.after)])
            ends = np.maximum(ready, free) + each.seconds
            arrived[place] = ends.max() + 0 * ends if each.sources is None else _last(ends, each.sources)
            free = arrived[place] if each.sources is None else ends
            if each.sources is None and not each.lag and len(done) > 1 and waited[step] < 0:
                waited[step] = int(np.argmax(done))
        begins[step + 1] = np.maximum.reduce([done, *arrived.values()])
    return Times(compute, begins, waited)


def _last(ends: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """When the last message of all whom a worker hears has come, and its own has gone, [W]."""
    return np.maximum(ends, ends[sources].max(axis=1, initial=0))
