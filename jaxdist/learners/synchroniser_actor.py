"""The synchroniser as a Ray actor.

Ray starts an actor again when its process is lost, and makes its calls again. So the constructor gets paths and text
only (arrays in Ray's object store are lost with the process that made them), and what it answers is on disk.
"""

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import jax

from jaxdist.algorithms._fragments import pick
from jaxdist.learners.calls import Answer, Settings, Sign, View, here, prepared, tokens_a_step
from jaxdist.learners.learner import Begin
from jaxdist.learners.progress import Arrival, first_progress, resized, total_tokens
from jaxdist.learners.record import Record, read_rounds, round_of
from jaxdist.learners.rounds import Rounds
from jaxdist.learners.synchroniser import Params, Synchroniser
from jaxdist.learners.worlds import Member, Worlds
from jaxdist.training.experiment import to_json
from jaxdist.training.train import first_state


class SynchroniserActor:
    """The synchroniser, an asynchronous actor: its methods run in one thread, and take turns where they wait."""

    def __init__(self, settings: Settings) -> None:
        whole, training, self.terms = prepared(settings)
        params = jax.device_get(first_state(training).params)
        self.synchroniser = Synchroniser(self.terms, params)
        data = {name: training.data.facts.get(name) for name in ('sha256', 'examples')}
        meta = {'experiment': to_json(whole), 'data': data, 'learners': whole.mesh.workers}
        self.record = Record(Path(settings.folder), meta, whole.keep).__enter__()
        first = first_progress(self.terms.learners, self.terms.fragments)
        self.merged, progress = self.record.begin(self.synchroniser, self.synchroniser.first(params), first)
        self.rounds = Rounds(settings.rule, resized(progress, self.terms.learners))
        self.target = whole.steps * tokens_a_step(whole, training)
        self.done = total_tokens(progress) >= self.target
        self.closed = [asyncio.Event() for _ in self.synchroniser.fragments]
        self.changed = asyncio.Event()
        self.signs: dict[int, Sign] = {}
        self.worlds = Worlds(settings.processes)
        self.lines = read_rounds(Path(settings.folder))  # also those that nobody has seen before a restart
        self.begun = 0.0
        self.failure: Exception | None = None

    async def enrol(self, member: Member) -> str | None:
        """A process of a learner wants to join the others; see `Worlds`."""
        return self.worlds.enrol(member, time.monotonic())

    async def begin(self, learner: int, where: tuple[str, ...]) -> tuple[Begin, bool]:
        """Where a learner begins, and whether the run has ended.

        Args:
            learner: its index.
            where: its processes, each with its machine.
        """
        start, step = self.rounds.begin(learner)
        self.begun = self.begun or time.time()
        self.signs[learner] = Sign(start, step, where)
        progress = self.rounds.progress
        return Begin(start, step, progress.versions, self.merged.anchor, progress.saved[learner]), self.done

    async def hand_in(self, arrival: Arrival) -> Answer:
        """Takes a learner's arrival, and answers when its round has closed."""
        fragment = arrival.fragment
        closed = self.closed[fragment]
        if not self.done and self.rounds.arrive(arrival, time.monotonic()) == 'open':
            self._close_due()
            await self._until(closed.wait())
        reached = self.rounds.progress.reached[arrival.learner][fragment]
        anchor = pick(self.merged.anchor, self.synchroniser.fragments[fragment])
        return Answer(anchor, self.rounds.progress.versions[fragment], arrival.end <= reached, self.done)

    async def wanted(self, learner: int) -> list[int]:
        """Waits until rounds have their quorum that lack this learner: their fragments; [] when the run has ended."""
        while not (found := self.rounds.wanted(learner)) and not self.done:
            await self._until(self.changed.wait())
        return found

    async def alive(self, learner: int, sign: Sign) -> None:
        """Takes a sign of life."""
        self.signs[learner] = sign

    async def view(self, since: int) -> View:
        """The rounds that have closed after round number `since`, and the learners."""
        if self.failure:
            raise self.failure
        lines, missing = [line for line in self.lines if line.number > since], self.worlds.missing(time.monotonic())
        return View(lines, self.signs, here(), self.begun, self.done, missing)

    async def anchor(self) -> Params:
        """The parameters."""
        return self.merged.anchor

    async def stop(self) -> None:
        """Ends the run, as if it had taken all its steps."""
        self._end()

    async def _until(self, event: Awaitable[Any]) -> None:
        await event
        if self.failure:
            raise self.failure

    def _close_due(self) -> None:
        """Closes the rounds that close now, and looks again when a grace ends."""
        try:
            for fragment in self.rounds.closing(time.monotonic()) if not self.done else []:
                self._close(fragment)
        except Exception as error:  # raised to all that wait: a callback of the loop would only log it
            self.failure = error
            self._end()
        for each in self.rounds.open:
            if each.full_since is not None and not self.done:
                ends = each.full_since + self.rounds.rule.grace - time.monotonic()
                asyncio.get_running_loop().call_later(max(ends, 0.0), self._close_due)
        self._wake()

    def _close(self, fragment: int) -> None:
        arrivals = self.rounds.close(fragment)
        self.merged = self.synchroniser.merge(self.merged, arrivals)
        members = self.synchroniser.fragments[fragment]
        line = round_of(arrivals, self.rounds.progress, self.merged, members, time.time(), self.worlds.processes)
        self.record.close(self.merged, self.rounds.progress, line)
        self.lines.append(line)
        self.closed[fragment].set()
        self.closed[fragment] = asyncio.Event()
        if line.tokens >= self.target:
            self._end()

    def _end(self) -> None:
        self.done = True
        for event in self.closed:
            event.set()
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
