"""What a run makes of its constraints: judged over the data, the best state that held them, and a verdict."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdist.training.checkpoint import Checkpoints
from jaxdist.constraints.evaluation import Judgement, judge
from jaxdist.constraints.verdict import Told, Verdict, verdicts
from jaxdist.training.step import State
from jaxdist.core.types import Batch
from jaxdist.training.train import Training

JUDGED = 64
"""Constraints are judged over so many training batches at most."""


class Held:
    """Judges the states of a run, and keeps the best that held: the one of least loss over the judged examples.

    Args:
        training: the run's, with constraints.
        folder: the run's; `best` in it gets the state, a checkpoint.

    >>> from jaxdist.training.experiment import Constraints, Digits, Experiment, Mesh, Perceptron
    >>> from jaxdist.training.train import first_state, prepare
    >>> small = Experiment(
    ...     model=Perceptron(hidden=(4,)),
    ...     data=Digits(),
    ...     mesh=Mesh(workers=2, simulate=True),
    ...     batch=512,
    ...     constraints=Constraints(hold=('squared_norm(bound=1e4)',)),
    ... )
    >>> training = prepare(small)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     held = Held(training, Path(folder))
    ...     record = held.look(3, first_state(training))
    ...     held.best
    3
    """

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.tolerance = training, training.experiment.constraints.tolerance
        self.checkpoints = Checkpoints(folder / 'best', keep=1)
        meta = self.checkpoints.meta() or {}
        self.best: int | None = meta.get('step')
        self.loss = meta.get('loss', float('inf'))
        self.last: Judgement | None = None

    def look(self, step: int, state: State) -> dict[str, Any]:
        """Judges the state after so many steps, and keeps it if it is the best; returns what a record has of it."""
        self.last = _judged(self.training, state, _training_batches(self.training))
        away = _judged(self.training, state, self.training.data.held_out(self.training.experiment.batch))
        holds = self.last.holds(self.tolerance)
        # Gone back to a step before the best, a run does not save what it saved already.
        if holds and self.last.loss < self.loss and step > (self.best or 0):
            self.best, self.loss = step, self.last.loss
            with self.checkpoints:
                self.checkpoints.save(step, state, {'step': step, 'loss': self.loss})
        worst = max(self.last.violations.values())
        seen = {'training': self.last.values, 'held_out': away.values}
        return {'loss': self.last.loss, 'holds': holds, 'violation': worst, **seen}

    def verdicts(self, records: list[dict[str, Any]]) -> dict[str, Verdict]:
        """What became of each constraint, from the last look and the records of training."""
        assert self.last is not None
        told: dict[str, list[Told]] = {name: [] for name in self.last.values}
        for record in records:
            for name, shown in record.get('constraints', {}).items():
                told[name].append(Told(shown.get('violation'), shown.get('multiplier')))
        priced = {name for name, count in self.last.counts.items() if count == 1}
        return verdicts(self.last.values, self.last.violations, told, self.tolerance, priced)


def _judged(training: Training, state: State, batches: Iterable[Batch]) -> Judgement:
    """The experiment's constraints over batches of NumPy arrays, by their true measures."""
    assert training.ascent is not None
    assert training.measure is not None
    params = jax.block_until_ready(training.params(state))
    return judge(training.ascent, [jax.device_get(training.measure(params, training.put(b))) for b in batches])


def _training_batches(training: Training) -> Iterator[Batch]:
    """The batches in which every training example is once, or `JUDGED` of them if that would take more."""
    experiment = training.experiment
    all_of_them = -(-int(training.data.facts.get('examples', JUDGED * experiment.batch)) // experiment.batch)
    for step in range(min(all_of_them, JUDGED)):
        yield training.data.batch(experiment.seed, step, experiment.batch, training.where.count)
