"""What became of the learners' time."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxdist.learners.record import Round


class LearnersGoodput(NamedTuple):
    """What became of the learners' time.

    Attributes:
        share: the part of all learners' time that went into steps that were merged.
        learners: how many learners there are.
        wall: seconds.
    """

    share: float
    learners: int
    wall: float

    @property
    def words(self) -> str:
        """One line.

        >>> LearnersGoodput(0.815, 4, 24.06).words
        'goodput 82% of 4 learners x 24.1 s'
        """
        return f'goodput {self.share:.0%} of {self.learners} learners x {self.wall:.1f} s'


def goodput(rounds: Sequence[Round], learners: int, fragments: int, wall: float) -> LearnersGoodput:
    """The goodput of some time, in which these rounds closed.

    Args:
        rounds: the rounds.
        learners: how many learners there are.
        fragments: how many fragments: each step is merged in all of them.
        wall: seconds.

    >>> entry = {'learner': 0, 'seconds': 8.0}
    >>> goodput([Round(1, 0, 1, 80, 1.0, 10, 2, '', 10.0, [entry, entry])], learners=2, fragments=1, wall=10.0).share
    0.8
    """
    productive = sum(entry['seconds'] for each in rounds for entry in each.learners) / fragments
    return LearnersGoodput(productive / (learners * wall) if wall > 0 else 0.0, learners, wall)
