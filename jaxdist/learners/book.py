"""Follows a run of learners, and writes its records."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from jaxdist.learners.calls import Sign, View, tokens_a_step
from jaxdist.learners.goodput import LearnersGoodput, goodput
from jaxdist.learners.progress import Quorum
from jaxdist.learners.record import Round, read_rounds
from jaxdist.learners.synchroniser import Params
from jaxdist.learners.terms import terms_of
from jaxdist.training.experiment import Experiment
from jaxdist.training.run_folder import Log
from jaxdist.training.train import Training, evaluate, first_state

LOOK_EVERY = 0.2
"""Seconds between two looks at the actors."""


class LearnersEvent(NamedTuple):
    """An event of a run of learners.

    Attributes:
        kind: `ready` (a `Started`), `here` (the name of an actor, and where it is), `lost` (a learner's number, and
            where it was), `back` (a learner's number and its `Sign`), `missing` (a learner's number, and its processes
            for which its others wait), `round` (a `Shown`), `held_out` (a record), and at the end either `stopped` or
            `done` (an `Ended`).
        value: the event's value, of the type given for its kind.
    """

    kind: str
    value: Any


class Started(NamedTuple):
    """The start of a run.

    Attributes:
        training: the prepared experiment of one learner.
        rounds: the rounds that have closed before.
        rule: when a round closes.
    """

    training: Training
    rounds: int
    rule: Quorum


class Shown(NamedTuple):
    """A closed round, and the learners at the time.

    Attributes:
        round: the round.
        step: the steps that all learners together have taken on average, as one program would count them.
        signs: the last sign of life of each learner.
        goodput: that of the time since the start.
    """

    round: Round
    step: int
    signs: dict[int, Sign]
    goodput: LearnersGoodput


class Ended(NamedTuple):
    """The end of a run.

    Attributes:
        step: as in `Shown`.
        rounds: closed rounds.
        goodput: that of the time since the start; None if there was nothing left to do.
        problem: the reason why `loss.png` was not drawn; empty if it was.
    """

    step: int
    rounds: int
    goodput: LearnersGoodput | None
    problem: str


class Watched(Protocol):
    """The processes of a run, as they are watched."""

    def look(self, since: int) -> View:
        """The synchroniser's view."""

    def lost(self) -> list[tuple[int, int]]:
        """The processes that were lost since the last call: the learner's index, and theirs in the learner."""

    def anchor(self) -> Params:
        """The parameters."""

    def stop(self) -> None:
        """Ends the run."""


class Book:
    """Follows a run, and writes its records."""

    def __init__(self, experiment: Experiment, training: Training, log: Log) -> None:
        self.experiment, self.training, self.log = experiment, training, log
        self.fragments, self.a_step = terms_of(experiment).fragments, tokens_a_step(experiment, training)
        self.rounds = read_rounds(log.folder)
        self.former = len(self.rounds)
        self.sent = max((record.get('sent', 0) for record in log.records), default=0)
        self.starts: dict[int, int] = {}
        self.where: dict[int, tuple[str, ...]] = {}
        self.away: set[int] = set()
        self.missing: dict[int, list[int]] = {}
        self.synchroniser = ''
        self.begun = 0.0
        self.stopped = False

    @property
    def step(self) -> int:
        """The steps that all learners together have taken on average."""
        return self.rounds[-1].tokens // self.a_step if self.rounds else 0

    @property
    def goodput(self) -> LearnersGoodput:
        """That of the time from the first learner's begin to the last round."""
        here = self.rounds[self.former :]
        wall = max(here[-1].at - self.begun, 0.0) if here else 0.0
        return goodput(here, self.experiment.mesh.workers, self.fragments, wall)

    def watch(self, actors: Watched, stop: Callable[[], bool]) -> Iterator[LearnersEvent]:
        """The events until the run ends."""
        done, evaluated = False, self.step
        while not done:
            time.sleep(LOOK_EVERY)
            if stop() and not self.stopped:
                self.stopped = True
                actors.stop()
            yield from self._lost(actors.lost())
            view = actors.look(self.rounds[-1].number if self.rounds else 0)
            done = view.done
            yield from self._signs(view)
            for line in view.rounds:
                yield LearnersEvent('round', self._closed(line, view))
            every = self.experiment.evaluate_every
            if self.step // every > evaluated // every or (done and self.step > evaluated):
                evaluated = self.step
                yield LearnersEvent('held_out', self._evaluate(actors.anchor()))

    def end(self) -> LearnersEvent:
        """Draws the losses; the last event."""
        problem = self.log.plot(self.training) if len(self.rounds) > self.former else ''
        taken = self.goodput if len(self.rounds) > self.former else None
        ended = Ended(self.step, len(self.rounds), taken, problem)
        return LearnersEvent('stopped' if self.stopped else 'done', ended)

    def _lost(self, processes: Sequence[tuple[int, int]]) -> Iterator[LearnersEvent]:
        """One that has not begun cannot start: that ends the run, with the reason. The others of a learner follow."""
        for k, process in processes:
            if k in self.where and k not in self.away:
                self.away.add(k)
                yield LearnersEvent('lost', (k, self.where[k][process]))

    def _signs(self, view: View) -> Iterator[LearnersEvent]:
        self.begun = self.begun or view.begun
        if view.where != self.synchroniser:
            self.synchroniser = view.where
            yield LearnersEvent('here', ('the synchroniser', view.where))
        for k, sign in view.signs.items():
            if k not in self.starts:
                yield LearnersEvent('here', (f'learner {k}', ', '.join(sign.where)))
            elif sign.start > self.starts[k]:
                self.away.discard(k)
                yield LearnersEvent('back', (k, sign))
            self.starts[k], self.where[k] = sign.start, sign.where
        yield from (LearnersEvent('missing', each) for each in view.missing.items() if each not in self.missing.items())
        self.missing = view.missing

    def _closed(self, line: Round, view: View) -> Shown:
        before = self.step
        self.rounds.append(line)
        self.sent += line.received / self.experiment.mesh.workers
        if self.step > before:
            self.log.write({'step': self.step, 'loss': line.loss, 'sent': round(self.sent), 'round': line.number})
        return Shown(line, self.step, view.signs, self.goodput)

    def _evaluate(self, anchor: Params) -> dict[str, Any]:
        state = first_state(self.training)
        shapes = self.training.program.state.params
        placed = jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), anchor, shapes)
        scores = evaluate(self.training, state._replace(params=placed))
        return self.log.write({'step': self.step, 'held_out': scores})
