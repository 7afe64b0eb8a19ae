"""Open rounds: who has handed in which fragment, and which rounds close."""

from typing import NamedTuple

from jaxdist.core.errors import InputError
from jaxdist.learners.progress import Arrival, Place, Progress, Quorum, closes, counted, place_of


class Open(NamedTuple):
    """The open round of a fragment.

    Attributes:
        arrivals: what has arrived, by learner.
        full_since: when the quorum was reached; None if it is not.
    """

    arrivals: dict[int, Arrival]
    full_since: float | None


def check_rule(rule: Quorum) -> None:
    """Checks when rounds close.

    Raises:
        InputError: the quorum is more than there are learners, or a number is out of range.

    >>> check_rule(Quorum(learners=4, quorum=5))
    Traceback (most recent call last):
    jaxdist.InputError: quorum=5 must be from 1 to the number of learners, 4: a round closes when so many have handed in
    """
    if not 1 <= rule.quorum <= rule.learners:
        raise InputError(
            f'quorum={rule.quorum} must be from 1 to the number of learners, {rule.learners}: a round closes when '
            'so many have handed in'
        )
    if not rule.grace >= 0:
        raise InputError(f'grace={rule.grace} must be 0 seconds or more')


class Rounds:
    """The open rounds. All times are given by the caller, so that the same calls have the same results.

    Args:
        rule: when a round closes.
        progress: what has been merged.

    >>> rounds = Rounds(Quorum(2, 1, grace=0.5), Progress((0,), ((0,), (0,)), ((0,), (0,)), (0, 0), (-1, -1)))
    >>> start, step = rounds.begin(0)
    >>> rounds.arrive(Arrival(0, start, 0, 0, step, 4, 8, (), 1.0, 1.0), now=10.0)
    'open'
    >>> rounds.wanted(1), rounds.closing(10.2), rounds.closing(10.6)
    ([0], [], [0])
    """

    def __init__(self, rule: Quorum, progress: Progress) -> None:
        check_rule(rule)
        self.rule, self.progress = rule, progress
        self.open = [Open({}, None) for _ in progress.versions]

    def begin(self, learner: int) -> tuple[int, int]:
        """A learner begins, for the first time or again: the number of this start, and its steps so far."""
        start = self.progress.starts[learner] + 1
        self.progress = _started(self.progress, learner, start)
        waiting = [round.arrivals[learner].end for round in self.open if learner in round.arrivals]
        return start, max([*self.progress.reached[learner], *waiting])

    def arrive(self, arrival: Arrival, now: float) -> Place:
        """A learner hands in; what is `open` is answered when the round of its fragment has closed.

        Raises:
            InputError: as `place_of`.
        """
        if arrival.start > self.progress.starts[arrival.learner]:  # begun before this synchroniser was started again
            self.progress = _started(self.progress, arrival.learner, arrival.start)
        place = place_of(arrival, self.progress)
        arrivals, full_since = self.open[arrival.fragment]
        # Of a learner that was lost with an arrival in this round, the next start waits for the next round.
        if place == 'open' and arrival.learner not in arrivals:
            arrivals[arrival.learner] = arrival
            if full_since is None and len(arrivals) >= self.rule.quorum:
                self.open[arrival.fragment] = Open(arrivals, now)
        return place

    def wanted(self, learner: int) -> list[int]:
        """The fragments whose quorum is reached and that this learner has not handed in."""
        return [p for p, each in enumerate(self.open) if each.full_since is not None and learner not in each.arrivals]

    def closing(self, now: float) -> list[int]:
        """The fragments whose rounds close now."""
        return [p for p, each in enumerate(self.open) if closes(len(each.arrivals), each.full_since, now, self.rule)]

    def close(self, fragment: int) -> list[Arrival]:
        """Closes a fragment's round, and returns what is merged, by learner."""
        arrivals = sorted(self.open[fragment].arrivals.values(), key=lambda arrival: arrival.learner)
        self.open[fragment] = Open({}, None)
        self.progress = counted(self.progress, arrivals)
        return arrivals


def _started(progress: Progress, learner: int, start: int) -> Progress:
    starts = tuple(start if k == learner else each for k, each in enumerate(progress.starts))
    return progress._replace(starts=starts)
