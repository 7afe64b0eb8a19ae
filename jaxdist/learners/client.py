"""A learner's client of the synchroniser."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxdist import cluster
from jaxdist.algorithms._fragments import pick
from jaxdist.learners.calls import Answer, Sign, here
from jaxdist.learners.learner import Begin, Learner
from jaxdist.learners.placed import from_first
from jaxdist.learners.progress import Arrival

SIGN_OF_LIFE = 1.0
"""Seconds between two signs of life."""
TURN = 60.0
"""Seconds that process 0 waits for a round until the others hear that it still does."""


class News(NamedTuple):
    """What has happened meanwhile.

    Attributes:
        wanted: the fragments whose quorum is reached and that lack this learner.
        closed: of the late fragments, those whose rounds have closed.
    """

    wanted: list[int]
    closed: list[int]


class Client:
    """A learner's client of the synchroniser: of several processes the first makes the calls, and all get the same.

    So all processes of a learner take the same decisions at the same steps, if each makes the same calls here.

    Args:
        ray: the module.
        synchroniser: the actor.
        learner: the learner.
    """

    def __init__(self, ray: Any, synchroniser: Any, learner: Learner) -> None:
        self.ray, self.call, self.learner = ray, synchroniser, learner
        self.calls_itself = jax.process_index() == 0
        self.where = tuple(cluster.gather(here(), 'where'))
        self.waits: dict[int, Any] = {}
        self.wanted: Any = None
        self.start, self.signed = 0, 0.0

    def begin(self) -> tuple[Begin, bool]:
        """Where the learner begins, and whether the run has ended."""
        at, done = _NOTHING
        if self.calls_itself:
            at, done = self.ray.get(self.call.begin.remote(self.learner.number, self.where))
            self.wanted = self.call.wanted.remote(self.learner.number)
        anchor = from_first(at.anchor, self.learner.training.program.state.params)
        start, step, versions, _, saved, done = cluster.agree([*at._replace(anchor=None), done])
        self.start = start
        return Begin(start, step, tuple(versions), anchor, saved), done

    def alive(self) -> None:
        """Gives a sign of life, once a second."""
        if self.calls_itself and time.monotonic() - self.signed > SIGN_OF_LIFE:
            self.signed = time.monotonic()
            self.call.alive.remote(self.learner.number, Sign(self.start, self.learner.step, self.where))

    def news(self) -> News:
        """What has happened since the last call."""
        return News(*cluster.agree(self._news() if self.calls_itself else None))

    def hand_in(self, arrivals: Sequence[Arrival]) -> None:
        """Hands in; `answer` follows for each. Then waits for the next wanted fragments, if there were some."""
        if not self.calls_itself:
            return
        for arrival in arrivals:
            self.waits[arrival.fragment] = self.call.hand_in.remote(arrival)
        if self.wanted is None:
            self.wanted = self.call.wanted.remote(self.learner.number)

    def answer(self, fragment: int) -> Answer:
        """The answer to a fragment's arrival; waits until its round has closed."""
        cluster.doing('wait', self.learner.step)
        while not cluster.agree(self.calls_itself and self._is_there(self.waits[fragment], TURN)):
            pass
        answer: Answer = self.ray.get(self.waits.pop(fragment)) if self.calls_itself else _NO_ANSWER
        _, version, merged, done = cluster.agree([*answer._replace(anchor=None)])
        members = self.learner.fragments[fragment]
        anchor = from_first(answer.anchor, pick(self.learner.training.program.state.params, members))
        return Answer(anchor, version, merged, done)

    def _news(self) -> News:
        wanted = []
        if self._is_there(self.wanted):
            wanted, self.wanted = self.ray.get(self.wanted), None
        return News(wanted, [p for p in self.learner.late if self._is_there(self.waits[p])])

    def _is_there(self, call: Any, seconds: float = 0.0) -> bool:
        return bool(self.ray.wait([call], timeout=seconds)[0])


_NOTHING = Begin(0, 0, (), None, -1), False
_NO_ANSWER = Answer(None, 0, False, False)
"""What the other processes of a learner have before they get the first one's."""
