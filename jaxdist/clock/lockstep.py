"""When each worker has taken each step, if workers wait for each other in every one: a max-plus recursion.

A worker computes, and then meets others: in a collective of all, or with its neighbours. It waits until the last of
them is there, and then for the link. What lies ready when a step begins is sent meanwhile.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Meeting(NamedTuple):
    """A collective of one step.

    Attributes:
        seconds: how long it takes when all who meet are there.
        sources: whom each worker hears beside itself, [W, n]; None if all meet all.
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


def lockstep(compute: np.ndarray, meetings: Sequence[Sequence[Meeting]]) -> Times:
    """When each worker has taken each step.

    Args:
        compute: seconds that each worker computes in each step, [T, W].
        meetings: those of each step, in order.

    >>> compute = np.array([[1.0, 2.0], [2.0, 1.0]])
    >>> lockstep(compute, [[Meeting(0.5)], [Meeting(0.5)]]).ends
    array([2.5, 5. ])
    >>> lockstep(compute, [[], []]).ends  # nobody waits
    array([2., 3.])
    >>> lockstep(compute, [[Meeting(1.5, lag=1)], [Meeting(1.5, lag=1)]]).ends  # sent while they compute
    array([2. , 3.5])
    """
    begins = np.zeros((len(compute) + 1, compute.shape[1]))
    waited = np.full(len(compute), -1)
    free = begins[0]  # when each worker's link is free: it sends one message after the other
    for step, met in enumerate(meetings):
        done = begins[step] + compute[step]
        for meeting in met:
            if meeting.sources is None and not meeting.lag and len(done) > 1 and waited[step] < 0:
                waited[step] = int(np.argmax(done))
            ready = begins[max(step - meeting.lag + 1, 0)] if meeting.lag else done
            free = _all_there(np.maximum(ready, free), meeting) + meeting.seconds
            done = done if meeting.lag else free
        begins[step + 1] = np.maximum(done, free) if met else done
    return Times(compute, begins, waited)


def _all_there(times: np.ndarray, meeting: Meeting) -> np.ndarray:
    """When all whom a worker meets are there, [W]."""
    if meeting.sources is None:
        return np.full_like(times, times.max())
    return np.maximum(times, times[meeting.sources].max(axis=1, initial=0))
