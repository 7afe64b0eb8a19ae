"""The monitor of constraints: evaluates them over the data, saves the best feasible state, and returns verdicts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdist import report
from jaxdist.constraints.evaluation import Judgement, judge, make_measure
from jaxdist.constraints.objective import LagrangianObjective
from jaxdist.constraints.verdict import Observation, Verdict, verdicts
from jaxdist.core.types import Batch
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.evaluation import evaluator
from jaxdist.training.step import State
from jaxdist.training.train import PRECISIONS, Training

MOST_BATCHES = 64
"""The largest number of training batches over which constraints are evaluated."""


class ConstraintMonitor:
    """Evaluates the constraints of a run, and saves the best state: feasible, of least loss over the same examples.

    Args:
        training: the run's experiment and program; it has constraints.
        folder: the run's folder; the best state is the checkpoint in its subfolder `best`.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import ConstraintSettings, Experiment, Mesh
    >>> from jaxdist.training.train import first_state, prepare
    >>> small = Experiment(
    ...     model=Perceptron(hidden=(4,)),
    ...     data=Digits(),
    ...     mesh=Mesh(workers=2, simulate=True),
    ...     batch=512,
    ...     constraints=ConstraintSettings(hold=('squared_norm(bound=1e4)',)),
    ... )
    >>> training = prepare(small)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     monitor = ConstraintMonitor(training, Path(folder))
    ...     record = monitor.evaluate(3, first_state(training))
    ...     monitor.best
    3
    """

    def __init__(self, training: Training, folder: Path) -> None:
        objective: Any = training.objective
        assert isinstance(objective, LagrangianObjective)
        self.training, self.objective = training, objective
        self.tolerance = training.experiment.constraints.tolerance
        mesh, compute = training.workers.mesh, PRECISIONS[training.experiment.precision]
        self.measure = jax.jit(
            make_measure(self.objective, evaluator(training.model), training.workers.count, compute),
            out_shardings=NamedSharding(mesh, PartitionSpec()) if mesh is not None else None,
        )
        self.folder, self.checkpoints = folder, Checkpoints(folder / 'best', keep=1)
        meta = self.checkpoints.meta() or {}
        self.best: int | None = meta.get('step')
        self.loss = meta.get('loss', float('inf'))
        self.last: Judgement | None = None

    def evaluate(self, step: int, state: State) -> dict[str, Any]:
        """Evaluates the state after `step` steps, and saves it if it is the best; returns the record for `judged`."""
        experiment = self.training.experiment
        self.last = self._judge(state, self._training_batches())
        held_out = self._judge(state, self.training.data.held_out(experiment.batch))
        holds = self.last.holds(self.tolerance)
        # A run that resumed from a step before the best one reaches it again, and must not save it twice.
        if holds and self.last.loss < self.loss and step > (self.best or 0):
            self.best, self.loss = step, self.last.loss
            with self.checkpoints:
                self.checkpoints.save(step, state, {'step': step, 'loss': self.loss})
        worst = max(self.last.violations.values())
        values = {'training': self.last.values, 'held_out': held_out.values}
        return {'loss': self.last.loss, 'holds': holds, 'violation': worst, **values}

    def verdicts(self, records: list[dict[str, Any]]) -> dict[str, Verdict]:
        """The verdict on each constraint, from the last evaluation and the records of training."""
        assert self.last is not None
        history: dict[str, list[Observation]] = {name: [] for name in self.last.values}
        for record in records:
            for name, metrics in record.get('constraints', {}).items():
                history[name].append(Observation(metrics.get('violation'), metrics.get('multiplier')))
        priced = {name for name, count in self.last.counts.items() if count == 1}
        return verdicts(self.last.values, self.last.violations, history, self.tolerance, priced)

    def plot(self, records: list[dict[str, Any]]) -> None:
        """Plots values and multipliers into `constraints.png` in the run's folder.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        report.constraints_plot(records, self.folder / 'constraints.png', self.tolerance)

    def _judge(self, state: State, batches: Iterable[Batch]) -> Judgement:
        """The constraints' true measures over batches of NumPy arrays."""
        params = jax.block_until_ready(self.training.params(state))
        sums = [jax.device_get(self.measure(params, self.training.put(batch))) for batch in batches]
        return judge(self.objective, sums)

    def _training_batches(self) -> Iterator[Batch]:
        """Batches that cover every training example once; the first `MOST_BATCHES` if there are more."""
        experiment, data = self.training.experiment, self.training.data
        examples = int(data.facts.get('examples', MOST_BATCHES * experiment.batch))
        for step in range(min(-(-examples // experiment.batch), MOST_BATCHES)):
            yield data.batch(experiment.seed, step, experiment.batch, self.training.workers.count)
