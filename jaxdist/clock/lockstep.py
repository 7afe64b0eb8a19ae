"""When each worker has taken each step, if workers wait for each other in every one: a max-plus recursion.

A worker computes, and then communicates: with all others, or with its neighbours. It waits until the last of
them is there, and then for the link. What lies ready when a step begins is sent meanwhile.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Communication(NamedTuple):
    """A collective of one step.

    Attributes:
        seconds: how long it takes when all who take part are there.
        sources: whom each worker hears beside itself, [W, n]; None if it hears all.
        lag: 0 if what is sent is computed in this step. n if it has lain ready since the step n - 1 steps before began:
            1 for this step.
    """

    seconds: float
    sources: np.ndarray | None = None
    lag: int = 0


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
        for communication in sent:
            if communication.sources is None and not communication.lag and len(done) > 1 and waited[step] < 0:
                waited[step] = int(np.argmax(done))
            ready = begins[max(step - communication.lag + 1, 0)] if communication.lag else done
            free = _all_there(np.maximum(ready, free), communication) + communication.seconds
            done = done if communication.lag else free
        begins[step + 1] = np.maximum(done, free) if sent else done
    return Times(compute, begins, waited)


def _all_there(times: np.ndarray, communication: Communication) -> np.ndarray:
    """When all whom a worker hears are there, [W]."""
    if communication.sources is None:
        return np.full_like(times, times.max())
    return np.maximum(times, times[communication.sources].max(axis=1, initial=0))
