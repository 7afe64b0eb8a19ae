"""The clock of an experiment, as plain data."""

from dataclasses import dataclass, field

import numpy as np

from jaxdist import line
from jaxdist.clock.durations import Durations
from jaxdist.clock.link import Link
from jaxdist.core.errors import InputError


@dataclass(frozen=True)
class Clock:
    """Simulated time: how long workers compute and links take; see docs/simulated_time.md."""

    compute: str = ''
    """Compute time of a step, as 'lognormal(mean=0.05, sigma=0.3)'; empty for no clock."""
    slow: tuple[float, ...] = ()
    """How many times slower the last workers are, as 10.0 for the last one."""
    link: Link = field(default_factory=Link)
    seed: int = 0
    """Seed of the compute times, apart from the run's seed."""

    def table(self, workers: int, steps: int) -> np.ndarray | None:
        """Seconds that each worker computes in each step, [T, W]; None without a clock.

        Raises:
            InputError: there are links or slow workers and no compute time; or as `durations`.

        >>> Clock().table(workers=2, steps=1) is None
        True
        """
        if self.compute:
            return self.durations(workers).table(steps)
        if self != Clock():
            raise InputError("the clock has no compute time: give one, as in --clock.compute 'lognormal(mean=0.05)'")
        return None

    def durations(self, workers: int) -> Durations:
        """The compute time of every turn of every worker.

        Args:
            workers: the number of workers.

        Raises:
            LineError: `compute` has a mistake.
            InputError: a number is out of range, or the clock does not fit so many workers.

        >>> Clock(compute='constant(mean=2.0)', slow=(3.0,)).durations(workers=2).table(1)
        array([[2., 6.]])
        """
        self.link.check('clock.link')
        if self.seed < 0:
            raise InputError(f'clock.seed={self.seed} must be 0 or more')
        try:
            return Durations(line.build_compute_time(self.compute), self.slow, workers, self.seed)
        except line.LineError:
            raise
        except InputError as error:
            raise InputError(f'clock: {error}') from None
