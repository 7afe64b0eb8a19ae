"""The table of arrivals of an experiment: its rows step by step, the examples that belong to them, and its times."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist.clock.arrivals import Arrival, Server
from jaxdist.clock.rules import RuleKind
from jaxdist.clock.settings import Clock
from jaxdist.core.types import Batch
from jaxdist.training.arrivals import rows_of
from jaxdist.training.experiment import Experiment, ExperimentError

REMEMBERED = 32
"""Batches that are kept on the host: of slow workers older ones are used, and those are made again."""


class ArrivalTable:
    """The arrivals of a run; a step has as many of them as there are workers.

    Args:
        rule: what the server does.
        clock: how long workers compute, and messages take the server's link.
        workers: the number of workers W.
        size: bytes of a message, and as many of the answer to it.
    """

    def __init__(self, rule: RuleKind, clock: Clock, workers: int, size: int) -> None:
        self.workers, self.link, self.size = workers, clock.link, size
        seconds, link = clock.durations(workers).of, clock.link
        self.server = Server(workers, seconds, rule.begin(workers), link.latency, link.message(2 * size))

    def rows(self, step: int) -> list[Arrival]:
        """The arrivals of a step, counted from 0."""
        self._advance(step + 1)
        return self.server.rows[step * self.workers : (step + 1) * self.workers]

    def until(self, steps: int) -> list[Arrival]:
        """The arrivals of the first steps.

        >>> from jaxdist.clock.rules import k_async
        >>> table = ArrivalTable(k_async(k=1), Clock('constant(mean=1.0)'), workers=2, size=8)
        >>> [row.time for row in table.until(2)]
        [1.0, 1.0, 2.0, 2.0]
        """
        self._advance(steps)
        return self.server.rows[: steps * self.workers]

    def _advance(self, steps: int) -> None:
        while self.server.closed < steps * self.workers:
            self.server.advance()

    def ends(self, steps: int) -> np.ndarray:
        """Seconds until each of the first steps is done, [T]."""
        return np.array([row.time for row in self.until(steps)[self.workers - 1 :: self.workers]])

    def summary(self, steps: int) -> dict[str, Any]:
        """Seconds of a step, the share of workers' time that counts, staleness, and shares of messages."""
        rows = self.until(steps)
        counted = [row for row in rows if row.weight > 0]
        staleness = [row.staleness for row in counted]
        useful = sum(self.server.seconds(row.worker, row.turn) for row in counted)
        sent = np.bincount([row.worker for row in rows], minlength=self.workers) / len(rows)
        return {
            'seconds_per_step': rows[-1].time / steps,
            'useful': float(useful / (rows[-1].time * self.workers)),
            'staleness': {'mean': float(np.mean(staleness)), 'most': int(max(staleness))},
            'discarded': 1 - len(counted) / len(rows),
            'from_worker': {'least': float(sent.min()), 'most': float(sent.max())},
        }

    def bars(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """When workers begin to compute in the first steps, and for how long, [turns, W] each; of later turns 0.

        >>> from jaxdist.clock.rules import k_async
        >>> ArrivalTable(k_async(k=1), Clock('constant(mean=1.0)', slow=(2.0,)), workers=2, size=8).bars(2)[1]
        array([[1., 2.],
               [1., 0.],
               [1., 0.]])
        """
        rows = self.until(steps)
        each = [[row for row in rows if row.worker == worker] for worker in range(self.workers)]
        begins = np.zeros((max(map(len, each)), self.workers))
        compute = np.zeros_like(begins)
        for worker, own in enumerate(each):
            begins[: len(own), worker] = [row.start for row in own]
            compute[: len(own), worker] = [row.time - row.start for row in own]
        return begins, compute

    def batches(self, batch: Callable[..., Batch]) -> Callable[..., Batch]:
        """The batch of a step: its rows, and for each the examples of its worker in the batch number `turn`.

        Args:
            batch: `(seed, step, size, workers) -> batch [B, ...]`, of the data.
        """
        known: OrderedDict[tuple[int, int], Batch] = OrderedDict()

        def whole(seed: int, turn: int, size: int) -> Batch:
            if (seed, turn) not in known:
                known[seed, turn] = batch(seed, turn, size, self.workers)
                if len(known) > REMEMBERED:
                    known.popitem(last=False)
            return known[seed, turn]

        def part(row: Arrival, seed: int, size: int) -> Batch:
            share = size // self.workers
            begin = row.worker * share
            return jax.tree.map(lambda x: x[begin : begin + share], whole(seed, row.turn, size))

        def of_step(seed: int, step: int, size: int, workers: int) -> Batch:
            rows = self.rows(step)
            examples = jax.tree.map(lambda *each: np.stack(each), *(part(row, seed, size) for row in rows))
            return {'rows': rows_of(rows, self.workers), 'examples': examples}

        return of_step


def check_arrivals(experiment: Experiment) -> None:
    """Checks that an experiment trains by arrivals.

    Raises:
        ExperimentError: it has something that does not go with them.

    >>> check_arrivals(Experiment(update='k_async(k=1) | sgd(0.1)'))
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: messages arrive at a server by a clock, and there is none: give one, as
    in --clock.compute 'lognormal(mean=0.05)'
    """
    if not experiment.clock.compute:
        raise ExperimentError(
            'messages arrive at a server by a clock, and there is none: give one, as in --clock.compute '
            "'lognormal(mean=0.05)'"
        )
    refused = {
        'a mesh: its workers are simulated, so give --simulate': not experiment.mesh.simulate,
        'constraints': bool(experiment.constraints.hold),
        'virtual_shards': bool(experiment.virtual_shards),
        'state_sync': bool(experiment.state_sync),
        'spike, for going back would change the table': bool(experiment.spike),
    }
    for what, given in refused.items():
        if given:
            raise ExperimentError(f'a line with a rule of a server does not go with {what}')
