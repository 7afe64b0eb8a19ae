"""Worlds: the processes of a learner, which find each other by way of the synchroniser."""

from typing import NamedTuple

SILENT = 5.0
"""Seconds after which a process that waits and does not ask again counts as gone."""
PATIENT = 60.0
"""Seconds that a learner's processes wait for the others before these are named."""


class Member(NamedTuple):
    """A process of a learner, which wants to join the others.

    Attributes:
        learner: the learner's index.
        process: its index in the learner.
        start: a name of this start of the process.
        address: `host:port` where it listens if it is process 0.
    """

    learner: int
    process: int
    start: str
    address: str


class _Waiting(NamedTuple):
    member: Member
    since: float
    asked: float


class Worlds:
    """Who is there of the processes of each learner. All times are given by the caller.

    Args:
        processes: the number of processes of a learner.

    >>> worlds, first, second = Worlds(2), Member(0, 0, 'a', 'host:1'), Member(0, 1, 'b', 'host:2')
    >>> worlds.enrol(first, 10.0), worlds.enrol(second, 10.2), worlds.enrol(first, 10.4)
    (None, None, None)
    >>> worlds.enrol(second, 10.4), worlds.enrol(first, 10.6)
    ('host:1', 'host:1')
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.waiting: dict[int, dict[int, _Waiting]] = {}
        self.formed: dict[int, dict[int, Member]] = {}

    def enrol(self, member: Member, now: float) -> str | None:
        """The address of process 0, once all processes of the learner are there; None before, and one asks again.

        All must have asked since the last one came, for the others would wait for one that has died meanwhile. A new
        start of a process begins the next world: the one of its former start has lost it.
        """
        formed = self.formed.get(member.learner, {})
        if formed.get(member.process) == member:
            return formed[0].address
        self.formed.pop(member.learner, None)
        here = {p: each for p, each in self._here(member.learner, now).items() if p != member.process}
        before = self.waiting.get(member.learner, {}).get(member.process)
        since = before.since if before is not None and before.member == member else now
        here[member.process] = _Waiting(member, since, now)
        self.waiting[member.learner] = here
        last = max(each.since for each in here.values())
        if len(here) < self.processes or any(each.asked <= last for each in here.values()):
            return None
        self.formed[member.learner] = {p: each.member for p, each in self.waiting.pop(member.learner).items()}
        return self.formed[member.learner][0].address

    def missing(self, now: float) -> dict[int, list[int]]:
        """The processes, by learner, for which others of the learner have waited for long."""
        found = {}
        for learner in self.waiting:
            here = self._here(learner, now)
            if any(now - each.since > PATIENT for each in here.values()):
                found[learner] = [p for p in range(self.processes) if p not in here]
        return found

    def _here(self, learner: int, now: float) -> dict[int, _Waiting]:
        return {p: each for p, each in self.waiting.get(learner, {}).items() if now - each.asked <= SILENT}
