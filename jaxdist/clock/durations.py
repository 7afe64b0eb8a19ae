"""The compute time of every turn of every worker: a function of (worker, turn), in whatever order it is asked.

So all algorithms are compared on the same luck, and a longer run has the same first turns.
"""

import numpy as np

from jaxdist.clock.compute import ComputeTime
from jaxdist.core.errors import InputError

BLOCK = 256
"""Turns that are drawn at once: a block of a worker has its own random stream."""


class Durations:
    """Seconds of turns.

    Args:
        compute: the compute times of a worker.
        slow: factors of the last workers: the last one's is the last.
        workers: the number of workers W.
        seed: the seed of the draws.

    Raises:
        InputError: a factor is not above 0, there are more than workers, or fewer workers were measured.

    >>> from jaxdist.clock.compute import constant
    >>> Durations(constant(mean=0.5), (10.0,), workers=3, seed=0).table(2)
    array([[0.5, 0.5, 5. ],
           [0.5, 0.5, 5. ]])
    """

    def __init__(self, compute: ComputeTime, slow: tuple[float, ...], workers: int, seed: int) -> None:
        if len(slow) > workers:
            raise InputError(f'slow={slow} has factors of {len(slow)} workers, and there are {workers}')
        for factor in slow:
            if not (np.isfinite(factor) and factor > 0):
                raise InputError(f'slow={slow}: a factor must be a number above 0')
        if compute.measured is not None and compute.measured.shape[1] != workers:
            raise InputError(
                f'{compute.source} has the times of {compute.measured.shape[1]} workers, and there are {workers}'
            )
        self.compute, self.workers, self.seed = compute, workers, seed
        self.factors = np.array([1.0] * (workers - len(slow)) + list(slow))
        self._blocks: list[list[np.ndarray]] = [[] for _ in range(workers)]
        self._after: list[object] = [None] * workers

    def of(self, worker: int, turn: int) -> float:
        """Seconds of one turn of one worker.

        Raises:
            InputError: that turn was not measured.

        >>> from jaxdist.clock.compute import lognormal
        >>> times = Durations(lognormal(mean=1.0), (), workers=2, seed=0)
        >>> bool(times.of(1, 300) == times.table(301)[300, 1])
        True
        """
        if self.compute.measured is not None:
            self._check_measured(turn + 1)
            return float(self.factors[worker] * self.compute.measured[turn, worker])
        self._draw(worker, turn // BLOCK + 1)
        return float(self.factors[worker] * self._blocks[worker][turn // BLOCK][turn % BLOCK])

    def table(self, turns: int) -> np.ndarray:
        """Seconds of the first turns of all workers, [turns, W].

        Raises:
            InputError: fewer turns were measured.
        """
        if self.compute.measured is not None:
            self._check_measured(turns)
            return self.factors * self.compute.measured[:turns]
        blocks = -(-turns // BLOCK)
        for worker in range(self.workers):
            self._draw(worker, blocks)
        columns = [np.concatenate([*each[:blocks], np.empty(0)])[:turns] for each in self._blocks]
        return self.factors * np.stack(columns, axis=1)

    def _draw(self, worker: int, blocks: int) -> None:
        """Draws a worker's first blocks, in order: in a block a worker goes on from its state after the one before."""
        assert self.compute.draw is not None
        each = self._blocks[worker]
        while len(each) < blocks:
            generator = np.random.Generator(
                np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(worker, len(each))))
            )
            seconds, self._after[worker] = self.compute.draw(generator, BLOCK, self._after[worker])
            each.append(seconds)

    def _check_measured(self, turns: int) -> None:
        assert self.compute.measured is not None
        if turns > len(self.compute.measured):
            raise InputError(
                f'{self.compute.source} has {len(self.compute.measured)} turns, and {turns} are needed: measure more, '
                'or train for fewer steps'
            )
