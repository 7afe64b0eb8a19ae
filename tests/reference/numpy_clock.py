"""Reference implementation of the seconds of workers in lockstep: a simulation of events, in plain Python.

A worker computes, sends its messages, and begins the next step when it has computed and has received every message
that the step needs. A worker's link sends one message after another, in the order in which they are ready.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy_training import Array

COMPUTED = -1
"""In place of a communication round's number: the worker has computed."""


class Communication(NamedTuple):
    """A communication round of one step, in which each worker sends one message.

    Attributes:
        seconds: for which a message occupies its sender's link.
        sources: for each worker, those whose messages it needs beside its own; None: those of all.
        delay: 0: a message is computed in this step. n >= 1: it has been ready since the step n - 1 steps before this
            one began, or since the start, as gradients are that are n steps old. What is computed in one step and
            needed `overlap` steps later is a round of the later step with that delay.
    """

    seconds: float
    sources: Sequence[Sequence[int]] | None = None
    delay: int = 0

    def needed(self, worker: int, workers: int) -> set[int]:
        """The workers whose messages `worker` needs. Its own is among them: a worker waits until it has sent."""
        return set(range(workers)) if self.sources is None else {worker, *self.sources[worker]}


class LockstepSimulation:
    """Workers that compute and communicate: a heap of events, and dicts of what is known so far."""

    def __init__(self, compute: Array, rounds: Sequence[Sequence[Communication]]) -> None:
        self.compute, self.rounds = compute, rounds
        self.steps, self.workers = compute.shape
        if len(rounds) != self.steps:
            raise ValueError(f'rounds of {len(rounds)} steps and seconds of {self.steps}: has to be as many')
        self.events: list[tuple[float, int, int, int, int]] = []  # (time, number, step, worker, round or COMPUTED)
        self.scheduled = 0  # numbers events, so that those of the same time keep their order
        self.free = dict.fromkeys(range(self.workers), 0.0)  # worker: when its link is free
        self.began: dict[tuple[int, int], float] = {}  # (step, worker): when
        self.ready: dict[int, list[tuple[int, int]]] = defaultdict(list)  # step: (step, round) of messages it may send
        self.awaited: dict[tuple[int, int], set[tuple[int, int]]] = {}  # (step, worker): (round or COMPUTED, sender)
        for step, communications in enumerate(rounds):
            for place, communication in enumerate(communications):
                if communication.delay:
                    self.ready[max(step - communication.delay + 1, 0)].append((step, place))
            for worker in range(self.workers):
                self.awaited[step, worker] = {(COMPUTED, worker)} | {
                    (place, sender)
                    for place, communication in enumerate(communications)
                    for sender in communication.needed(worker, self.workers)
                }

    def run(self) -> dict[tuple[int, int], float]:
        """When each worker begins each step, by (step, worker); the step after the last one begins at the end."""
        for worker in range(self.workers):
            self.begin(0.0, 0, worker)
        while self.events:
            now, _, step, worker, place = heapq.heappop(self.events)
            if place == COMPUTED:
                self.send_computed(now, step, worker)
            for receiver in range(self.workers):
                self.receive(now, step, receiver, (place, worker))
        return self.began

    def begin(self, now: float, step: int, worker: int) -> None:
        """The worker begins a step: it computes, and sends what has been ready for later steps or this one."""
        self.began[step, worker] = now
        if step == self.steps:
            return
        self.schedule(now + self.compute[step, worker], step, worker, COMPUTED)
        for later, place in self.ready[step]:
            self.send(now, later, worker, place)

    def send_computed(self, now: float, step: int, worker: int) -> None:
        """The worker has computed: it sends what is computed in this step."""
        for place, communication in enumerate(self.rounds[step]):
            if not communication.delay:
                self.send(now, step, worker, place)

    def send(self, now: float, step: int, worker: int, place: int) -> None:
        """Puts a message in the queue of the worker's link."""
        self.free[worker] = max(now, self.free[worker]) + self.rounds[step][place].seconds
        self.schedule(self.free[worker], step, worker, place)

    def receive(self, now: float, step: int, worker: int, event: tuple[int, int]) -> None:
        """The worker awaits an event less; after the last one it begins the next step."""
        awaited = self.awaited[step, worker]
        if event in awaited:
            awaited.remove(event)
            if not awaited:
                self.begin(now, step + 1, worker)

    def schedule(self, time: float, step: int, worker: int, place: int) -> None:
        """Puts an event in the heap."""
        heapq.heappush(self.events, (time, self.scheduled, step, worker, place))
        self.scheduled += 1


def begin_times(compute: Array, rounds: Sequence[Sequence[Communication]]) -> Array:
    """When each worker begins each step, [T + 1, W]; the last row is when it has ended.

    Args:
        compute: seconds that each worker computes in each step, [T, W].
        rounds: the communication rounds of each step, in the order in which a worker sends.
    """
    began = LockstepSimulation(compute, rounds).run()
    steps, workers = compute.shape
    return np.array([[began[step, worker] for worker in range(workers)] for step in range(steps + 1)])
