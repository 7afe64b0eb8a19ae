"""One learner: it trains by itself, hands in fragments, and adopts what was merged."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.algorithms._fragments import divide, join, pick
from jaxdist.cluster.phases import doing
from jaxdist.core.types import Batch
from jaxdist.learners.placed import on_devices, on_host
from jaxdist.learners.progress import Arrival
from jaxdist.learners.synchroniser import Params, messengers
from jaxdist.learners.terms import Terms
from jaxdist.training.metrics import means
from jaxdist.training.step import State
from jaxdist.training.train import Training, first_state


class Kept(NamedTuple):
    """What a learner saves: the rest it gets from the synchroniser.

    Attributes:
        opt_state: the state of its update line.
        residual: the residual of each fragment's messages.
    """

    opt_state: Any
    residual: tuple[Any, ...]


class Begin(NamedTuple):
    """Where a learner begins.

    Attributes:
        start: which of its starts this is, from 1.
        step: its steps so far: those that are merged, and those that an earlier start has handed in.
        versions: the closed rounds of each fragment.
        anchor: the parameters.
        saved: the step at which an earlier start has saved its own state; -1 for none.
    """

    start: int
    step: int
    versions: tuple[int, ...]
    anchor: Params
    saved: int


class _Sent(NamedTuple):
    """A fragment that was handed in and not adopted yet.

    Attributes:
        end: the step at which it was handed in.
        adopted: the step at which it is adopted; None for a late one, which is adopted when its round has closed.
        residual: the residual, if it is merged.
        journal: the number of entries of the journal.
        params: of a late one the fragment's parameters.
    """

    end: int
    adopted: int | None
    residual: Any
    journal: int
    params: Any


class Learner:
    """One learner. The same calls give the same arrivals bit for bit: its journal has them all.

    The journal's entries are `('begin', step, versions, saved)`, `('train', steps)`,
    `('hand_in', fragment, late)`,
    `('adopt', fragment, version, merged)` and `('save', step)`.

    Args:
        training: the prepared experiment of one learner; see `of_one_learner`.
        terms: how learners and synchroniser work together.
        number: its index.
        batch: `step -> batch`, its part of the data.
    """

    def __init__(self, training: Training, terms: Terms, number: int, batch: Callable[[int], Batch]) -> None:
        self.training, self.terms, self.number, self.batch = training, terms, number, batch
        params = training.program.state.params
        self.fragments = divide(params, terms.fragments, terms.rule)
        self.messengers = messengers(terms, params)
        tokens = training.data.task.shape[0] if training.data.task.kind == 'tokens' else 1
        self.tokens_a_step = training.experiment.batch * tokens

    def begin(self, at: Begin, kept: Kept | None) -> None:
        """Begins at the synchroniser's anchor, with its own former state if there is one."""
        state = first_state(self.training)
        key = jax.random.fold_in(state.key, self.number)  # learners draw other numbers
        self.state: State = on_devices(state._replace(step=jnp.int32(at.step), key=key), self.training.program.state)
        self.at, self.step = at, at.step
        self.base, self.versions, self.residual = at.anchor, list(at.versions), [m.start() for m in self.messengers]
        if kept is not None:
            opt_state = on_devices(kept.opt_state, self.training.program.state.opt_state)
            self.state = self.state._replace(opt_state=opt_state)
            # A residual goes with the message that it was left by: of an earlier one, it would be sent twice.
            if at.saved == at.step:
                self.residual = list(on_host(kept.residual))
        self._set(at.anchor)
        count, every = len(self.fragments), self.terms.every
        self.due = [at.step + (p * every // count or every) for p in range(count)]
        self.first = [at.step] * count
        self.sent: dict[int, _Sent] = {}
        self.seconds, self.losses = {at.step: 0.0}, {at.step: 0.0}
        self.journal: list[tuple[Any, ...]] = [('begin', at.step, tuple(at.versions), at.saved)]
        self.acknowledged = 0

    def warm_up(self) -> None:
        """Compiles what it runs, so that no step takes longer than the others; `begin` follows."""
        params = on_host(first_state(self.training).params)
        self.begin(Begin(0, 0, (0,) * len(self.fragments), params, -1), None)
        self.train()
        for fragment in range(len(self.fragments)):
            self.hand_in(fragment)

    def train(self) -> None:
        """Takes one step."""
        begun = time.monotonic()
        doing('data', self.step + 1)
        batch = self.batch(self.step)
        # All rows of a learner have one weight: its share of the data, if these are divided unequally.
        self.share = float(np.mean(batch.get('weight', 1.0)))
        batch = self.training.put(batch)
        doing('step', self.step + 1)
        self.state, metrics = self.training.program.step(self.state, batch)
        loss = means(metrics)['loss']  # waits for the step
        self.step += 1
        self.seconds[self.step] = self.seconds[self.step - 1] + time.monotonic() - begun
        self.losses[self.step] = self.losses[self.step - 1] + loss
        if self.journal[-1][0] == 'train':
            self.journal[-1] = ('train', self.journal[-1][1] + 1)
        else:
            self.journal.append(('train', 1))

    @property
    def due_now(self) -> list[int]:
        """The fragments to be handed in by the learner's own count of steps."""
        return [p for p, at in enumerate(self.due) if self.step >= at and p not in self.sent]

    @property
    def to_adopt(self) -> list[int]:
        """The fragments whose merged parameters are to be adopted now."""
        return [p for p, sent in self.sent.items() if sent.adopted is not None and self.step >= sent.adopted]

    @property
    def late(self) -> list[int]:
        """The fragments whose merged parameters are to be adopted as soon as they are there."""
        return [p for p, sent in self.sent.items() if sent.adopted is None]

    def hand_in(self, fragment: int, late: bool = False) -> Arrival:
        """A fragment's arrival: the pseudo-gradient of the steps since its last merged one.

        Args:
            fragment: the fragment.
            late: whether its round has closed without the learner, which is then early in the next one. It does not
                wait for that to close: the steps in between are moved to the anchor that it adopts.
        """
        members, first = self.fragments[fragment], self.first[fragment]
        here = on_host(pick(self.state.params, members))
        gradient = jax.tree.map(lambda a, x: np.asarray(a - x), pick(self.base, members), here)
        key = jax.random.fold_in(jax.random.key(self.terms.seed), self.number)
        key = jax.random.fold_in(jax.random.fold_in(key, fragment), self.step)
        message, residual = self.messengers[fragment].encode(gradient, self.residual[fragment], key)
        self.journal.append(('hand_in', fragment, late))
        # Who is asked for it before its time is late, and would be in the next round too: it does not go on meanwhile.
        overlap = self.terms.overlap if self.step >= self.due[fragment] else 0
        self.due[fragment] = self.step + self.terms.every
        adopted = None if late else self.step + overlap
        self.sent[fragment] = _Sent(self.step, adopted, residual, len(self.journal), here if late else None)
        steps = self.step - first
        return Arrival(
            *(self.number, self.at.start, fragment, self.versions[fragment], first, self.step),
            tokens=steps * self.tokens_a_step,
            message=message,
            loss=(self.losses[self.step] - self.losses[first]) / steps,
            seconds=self.seconds[self.step] - self.seconds[first],
            share=self.share,
            journal=tuple(self.journal[self.acknowledged :]),
            begins=self.acknowledged,
        )

    def adopt(self, fragment: int, anchor: Params, version: int, merged: bool) -> None:
        """Goes on from a fragment's new anchor.

        Args:
            fragment: the fragment.
            anchor: its anchor: the tree with None for the tensors of other fragments.
            version: the closed rounds of the fragment.
            merged: whether the learner's arrival is in it. If not, its displacement is moved to the new anchor, and its
                steps are handed in again, late: they are not lost.
        """
        sent = self.sent.pop(fragment)
        members, mixing = self.fragments[fragment], self.terms.mixing
        before, here = pick(self.base, members), on_host(pick(self.state.params, members))
        move = lambda x, b, a: np.asarray(a + (x - b))  # noqa: E731
        if merged:
            self.residual[fragment], self.first[fragment] = sent.residual, sent.end
            self.acknowledged = max(self.acknowledged, sent.journal)
            mixed = lambda x, a: (mixing * x + (1 - mixing) * a).astype(a.dtype) if mixing else a  # noqa: E731
            on_time = sent.adopted is not None
            new = jax.tree.map(mixed, here, anchor) if on_time else jax.tree.map(move, here, sent.params, anchor)
        else:
            new = jax.tree.map(move, here, before, anchor)
        others = [pick(self.base, m) for p, m in enumerate(self.fragments) if p != fragment]
        self.base = join([anchor, *others])
        self.versions[fragment] = version
        self._set(join([new, *(pick(self.state.params, m) for p, m in enumerate(self.fragments) if p != fragment)]))
        self.journal.append(('adopt', fragment, version, merged))
        for step in [step for step in self.seconds if step < min(self.first)]:
            del self.seconds[step], self.losses[step]

    @property
    def kept(self) -> Kept:
        """The shapes of what is saved; a residual is sharded as its tensor."""
        state = self.training.program.state
        residual = []
        for members, each in zip(self.fragments, self.messengers, strict=True):
            leaves = jax.tree.leaves(pick(state.params, members))
            like = (leaves[i] for i in each.fed_back)
            residual.append(tuple(jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding) for x in like))
        return Kept(state.opt_state, tuple(residual))

    def keep(self) -> Kept:
        """What is saved; no residual of a fragment that was handed in, as it is not known yet which one counts."""
        self.journal.append(('save', self.step))
        residual = [each.start() if p in self.sent else self.residual[p] for p, each in enumerate(self.messengers)]
        return Kept(self.state.opt_state, on_devices(tuple(residual), self.kept.residual))

    def _set(self, params: Params) -> None:
        """Moves parameters to the devices, where they are not there yet."""
        self.state = self.state._replace(params=on_devices(params, self.training.program.state.params))


def batches(training: Training, number: int, learners: int) -> Callable[[int], Batch]:
    """`step -> batch` of one learner: its rows of the global batch, as of a worker of the mesh.

    Args:
        training: the prepared experiment of one learner.
        number: the learner's index.
        learners: how many there are.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> one = Mesh(workers=1, simulate=True)
    >>> training = prepare(Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=one, batch=4))
    >>> batches(training, number=1, learners=2)(0)['y'].tolist() == training.data.batch(0, 0, 8, 2)['y'][4:].tolist()
    True
    """
    experiment, each = training.experiment, training.experiment.batch

    def batch(step: int) -> Batch:
        whole = training.data.batch(experiment.seed, step, each * learners, learners)
        return {name: x[number * each : (number + 1) * each] for name, x in whole.items()}

    return batch
