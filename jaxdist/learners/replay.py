"""Replays a run of learners from its record: every learner's calls in their order, in one process."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxdist.algorithms._fragments import join, pick
from jaxdist.core.errors import JaxdistError
from jaxdist.data.dataset import digest
from jaxdist.learners.learner import Begin, Kept, Learner, batches
from jaxdist.learners.progress import Arrival, mean_loss
from jaxdist.learners.record import Round
from jaxdist.learners.synchroniser import Merged, Params, Synchroniser
from jaxdist.learners.terms import Terms, of_one_learner, terms_of
from jaxdist.training.experiment import Experiment
from jaxdist.training.train import Training, first_state, prepare


class ReplayError(JaxdistError):
    """A record that cannot be replayed, or whose replay gives other anchors."""

    exit_code = 1


Start = tuple[int, int]
"""A learner, and which of its starts."""


class Replayed(NamedTuple):
    """A replayed round.

    Attributes:
        round: the round, as it was recorded.
        digest: of the fragment's anchor, as it was computed now.
        merged: the synchroniser's arrays after it.
        loss: the mean loss of the merged steps, as it was computed now.
    """

    round: Round
    digest: str
    merged: Merged
    loss: float

    @property
    def equal(self) -> bool:
        """Whether the anchor is that of the run, bit for bit."""
        return self.digest == self.round.digest

    @property
    def difference(self) -> float:
        """By how much the loss differs from the run's, relative to it."""
        return abs(self.loss - self.round.loss) / abs(self.round.loss or 1.0)


def replay(experiment: Experiment, rounds: Sequence[Round]) -> Iterator[Replayed]:
    """Trains again what the rounds merged, and merges it again.

    Who arrives when is part of a run's result, and it is in the record: so the same machine and versions give the same
    anchors bit for bit. Learners of several processes are replayed in one, which may add in another order.

    Args:
        experiment: the experiment of all learners.
        rounds: the recorded rounds, from the first.

    Raises:
        ReplayError: the record lacks a round, or something that a learner did.

    >>> list(replay(Experiment(), []))
    []
    """
    if not rounds:
        return
    if [each.number for each in rounds] != list(range(1, len(rounds) + 1)):
        raise ReplayError('the record lacks a round: its numbers must be 1, 2, ...')
    # A run may go on with another number of learners: the data are divided among those that there were.
    prepared = {of: _prepared(experiment, of) for of in {each.of for each in rounds}}
    params = jax.device_get(first_state(prepared[rounds[0].of][0]).params)
    synchroniser = Synchroniser(prepared[rounds[0].of][1], params)
    merged = synchroniser.first(params)
    versions = _Versions(synchroniser.fragments, params, rounds)
    players: dict[Start, _Player] = {}
    kept: dict[int, dict[int, Kept]] = {}
    for each in rounds:
        arrivals = []
        for entry in each.learners:
            k, start = entry['learner'], entry['start']
            if (k, start) not in players:
                training, terms = prepared[each.of]
                learner = Learner(training, terms, k, batches(training, k, each.of))
                saves = kept.setdefault(k, {})
                players[k, start] = _Player(learner, start, _journal(rounds, k, start), versions, saves)
            arrivals.append(players[k, start].arrival(entry['begins'] + len(entry['journal'])))
        merged = synchroniser.merge(merged, arrivals)
        anchor = pick(merged.anchor, synchroniser.fragments[each.fragment])
        versions.add(each.fragment, each.version, anchor, each.number)
        yield Replayed(each, digest(*jax.tree.leaves(anchor))[:16], merged, mean_loss(arrivals))


def _prepared(experiment: Experiment, learners: int) -> tuple[Training, Terms]:
    """The experiment of one of so many learners, and their terms."""
    whole = replace(experiment, mesh=replace(experiment.mesh, workers=learners))
    return prepare(of_one_learner(whole)), terms_of(whole)


class _Versions:
    """Anchors by fragment and version, as long as a learner adopts them in a later round."""

    def __init__(self, fragments: Sequence[Sequence[int]], params: Params, rounds: Sequence[Round]) -> None:
        self.last: dict[tuple[int, int], int] = {}
        for each in rounds:
            for entry in each.learners:
                for used in (pair for call in entry['journal'] for pair in _used(call)):
                    self.last[used] = each.number
        self.anchors = {(p, 0): pick(params, members) for p, members in enumerate(fragments)}

    def add(self, fragment: int, version: int, anchor: Params, number: int) -> None:
        self.anchors[fragment, version] = anchor
        for used in [used for used in self.anchors if self.last.get(used, 0) <= number]:
            del self.anchors[used]

    def __getitem__(self, used: tuple[int, int]) -> Params:
        return self.anchors[used]


def _used(call: Sequence[Any]) -> list[tuple[int, int]]:
    """The anchors that a call takes, as (fragment, version)."""
    match call:
        case ['begin', _, versions, _]:
            return list(enumerate(versions))
        case ['adopt', fragment, version, _]:
            return [(fragment, version)]
    return []


def _journal(rounds: Sequence[Round], learner: int, start: int) -> list[Any]:
    """All that a start of a learner did until its last merged arrival."""
    calls: dict[int, Any] = {}
    for each in rounds:
        for entry in each.learners:
            if (entry['learner'], entry['start']) == (learner, start):
                calls |= dict(enumerate(entry['journal'], entry['begins']))
    if sorted(calls) != list(range(len(calls))):
        raise ReplayError(f'the record lacks something that learner {learner} did in its start {start}')
    return [calls[i] for i in range(len(calls))]


class _Player:
    """Makes the calls of one start of a learner, in their order."""

    def __init__(
        self, learner: Learner, start: int, journal: list[Any], versions: _Versions, kept: dict[int, Kept]
    ) -> None:
        self.learner, self.start, self.journal, self.versions, self.kept = learner, start, journal, versions, kept
        self.done = 0
        self.arrivals: dict[int, Arrival] = {}

    def arrival(self, until: int) -> Arrival:
        """The arrival that is handed in by the call before number `until`."""
        while self.done < until:
            self._call(self.journal[self.done])
            self.done += 1
        return self.arrivals.pop(until)

    def _call(self, call: Sequence[Any]) -> None:
        learner = self.learner
        match call:
            case ['begin', step, versions, saved]:
                anchor = join([self.versions[each] for each in enumerate(versions)])
                learner.begin(Begin(self.start, step, tuple(versions), anchor, saved), self.kept.get(saved))
            case ['train', steps]:
                for _ in range(steps):
                    learner.train()
            case ['hand_in', fragment, late]:
                self.arrivals[self.done + 1] = learner.hand_in(fragment, late)
            case ['adopt', fragment, version, merged]:
                learner.adopt(fragment, self.versions[fragment, version], version, merged)
            case ['save', step]:
                self.kept[step] = jax.device_get(learner.keep())
