"""Ray actors: a learner each, with a JAX of its own, and the synchroniser between them.

Ray starts an actor again when its process is lost, and makes its calls again. So an actor's constructor gets paths and
text only (arrays in Ray's object store are lost with the process that made them), a learner's `run` begins at the
newest anchor, and the synchroniser has on disk what it answers.
"""

import asyncio
import os
import platform
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist.algorithms._fragments import pick
from jaxdist.learners.learner import Begin, Kept, Learner, batches
from jaxdist.learners.record import Record, Round, round_of
from jaxdist.learners.rounds import Rounds
from jaxdist.learners.synchroniser import Arrival, Params, Quorum, Synchroniser, first_progress, resized, total_tokens
from jaxdist.learners.terms import Terms, of_one_learner, terms_of
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.experiment import Experiment, from_json, to_json
from jaxdist.training.run_code import Commands, run_code
from jaxdist.training.train import Training, first_state, prepare

SIGN_OF_LIFE = 1.0
"""Seconds between two signs of life of a learner."""


class Settings(NamedTuple):
    """What an actor needs.

    Attributes:
        experiment: as JSON data; each worker of its mesh is a learner.
        code: the user's code, which the folder's `run.json` records; see `jaxdist.training.run_code`.
        folder: the run's folder.
        rule: when a round closes.
        jax: settings of JAX, such as the folder of compiled programs.
    """

    experiment: dict[str, Any]
    code: list[str]
    folder: str
    rule: Quorum
    jax: dict[str, Any]


class Prepared(NamedTuple):
    """An actor's experiment, prepared.

    Attributes:
        whole: the experiment of all learners.
        training: that of one learner.
        terms: how learners and synchroniser work together.
    """

    whole: Experiment
    training: Training
    terms: Terms


class Answer(NamedTuple):
    """The synchroniser's answer to an arrival.

    Attributes:
        anchor: the fragment's anchor: the tree with None for the tensors of other fragments.
        version: the closed rounds of the fragment.
        merged: whether the arrival is in it.
        done: whether the run has ended.
    """

    anchor: Params
    version: int
    merged: bool
    done: bool


class Sign(NamedTuple):
    """A sign of life of a learner.

    Attributes:
        start: which of its starts this is.
        step: its steps so far.
        where: its process and machine.
    """

    start: int
    step: int
    where: str


class View(NamedTuple):
    """What the synchroniser shows.

    Attributes:
        rounds: the rounds that have closed since the last view.
        signs: the last sign of life of each learner that gave one.
        where: the synchroniser's process and machine.
        done: whether the run has ended.
    """

    rounds: list[Round]
    signs: dict[int, Sign]
    where: str
    done: bool


def prepared(settings: Settings) -> Prepared:
    """Sets up JAX in this process, and prepares the experiment."""
    run_code(Path(settings.folder), settings.code, Commands('jaxdist learners', 'jaxdist learners CONFIG.py'))
    whole = from_json(settings.experiment)
    one = of_one_learner(whole)
    for name, value in settings.jax.items():
        jax.config.update(name, value)
    if one.mesh.emulate:
        jax.config.update('jax_num_cpu_devices', one.mesh.devices)
        jax.config.update('jax_platforms', 'cpu')
    return Prepared(whole, prepare(one), terms_of(whole))


class SynchroniserActor:
    """The synchroniser, an asynchronous actor: its methods run in one thread, and take turns where they wait."""

    def __init__(self, settings: Settings) -> None:
        whole, training, self.terms = prepared(settings)
        params = jax.device_get(first_state(training).params)
        self.synchroniser = Synchroniser(self.terms, params)
        meta = meta_of(whole, training)
        self.record = Record(Path(settings.folder), meta, whole.keep).__enter__()
        first = first_progress(self.terms.learners, self.terms.fragments)
        self.merged, progress = self.record.begin(self.synchroniser, self.synchroniser.first(params), first)
        self.rounds = Rounds(settings.rule, resized(progress, self.terms.learners))
        self.target = whole.steps * tokens_a_step(whole, training)
        self.done = total_tokens(progress) >= self.target
        self.closed = [asyncio.Event() for _ in self.synchroniser.fragments]
        self.changed = asyncio.Event()
        self.signs: dict[int, Sign] = {}
        self.lines: list[Round] = []
        self.failure: Exception | None = None

    async def begin(self, learner: int, where: str) -> tuple[Begin, bool]:
        """Where a learner begins, and whether the run has ended.

        Args:
            learner: its index.
            where: its process and machine.
        """
        start, step = self.rounds.begin(learner)
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
        return View([line for line in self.lines if line.number > since], self.signs, here(), self.done)

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
        line = round_of(arrivals, self.rounds.progress, self.merged, members, time.time())
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


class LearnerActor:
    """A learner: its own process, with its own devices."""

    def __init__(self, settings: Settings, number: int, synchroniser: str) -> None:
        import ray

        whole, training, terms = prepared(settings)
        self.number, self.synchroniser = number, ray.get_actor(synchroniser)
        self.learner = Learner(training, terms, number, batches(training, number, terms.learners))
        self.learner.warm_up()
        self.save_every = whole.save_every
        self.checkpoints = Checkpoints(Path(settings.folder) / 'learners' / str(number))

    def run(self) -> None:
        """Trains until the run has ended."""
        import ray

        learner, number, call = self.learner, self.number, self.synchroniser
        with self.checkpoints:
            begun: Any = ray.get(call.begin.remote(number, here()))
            at, done = begun[0], begun[1]
            kept = restored(self.checkpoints, at.saved, learner)
            learner.begin(at if kept is not None else at._replace(saved=-1), kept)
            wanted, waits = call.wanted.remote(number), {}
            saved, said = at.step, 0.0
            while not done:
                learner.train()
                if time.monotonic() - said > SIGN_OF_LIFE:
                    said = time.monotonic()
                    call.alive.remote(number, Sign(at.start, learner.step, here()))
                asked = ray.get(wanted) if (news := bool(ray.wait([wanted], timeout=0)[0])) else []
                for fragment in sorted({*learner.due_now, *asked} - set(learner.sent)):
                    waits[fragment] = call.hand_in.remote(learner.hand_in(fragment))
                if news:
                    wanted = call.wanted.remote(number)
                for fragment in learner.to_adopt:
                    answer: Answer = ray.get(waits.pop(fragment))
                    done = answer.done
                    if not done:
                        learner.adopt(fragment, answer.anchor, answer.version, answer.merged)
                if not done and not learner.sent and learner.step >= saved + self.save_every:
                    saved = learner.step
                    self.checkpoints.save(saved, learner.keep(), {})

    def watch(self) -> None:
        """Never returns: the call ends with an error when the process is lost."""
        while True:
            time.sleep(3600)


def here() -> str:
    """This process, and its machine."""
    return f'process {os.getpid()} on {platform.node()}'


def restored(checkpoints: Checkpoints, saved: int, learner: Learner) -> Kept | None:
    """What an earlier start of a learner has saved at this step; None if there is nothing intact."""
    checkpoints.forget_after(saved)
    if saved < 0:
        return None
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    residual = tuple(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), each.start())
        for each in learner.messengers
    )
    found = checkpoints.restore(Kept(learner.training.program.state.opt_state, residual))
    return found.state if found is not None and found.step == saved else None


def meta_of(whole: Experiment, training: Training) -> dict[str, Any]:
    """What the run's checkpoints say beside the progress."""
    data = {name: training.data.facts.get(name) for name in ('sha256', 'examples')}
    return {'experiment': to_json(whole), 'data': data, 'learners': whole.mesh.workers}


def tokens_a_step(whole: Experiment, training: Training) -> int:
    """Tokens, or for other data examples, of a step of all learners."""
    task = training.data.task
    return whole.batch * (task.shape[0] if task.kind == 'tokens' else 1)
