"""Monitors: evaluation of a run's objective over the data, in addition to the metrics of the steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxdist.training.constraint_monitor import ConstraintMonitor
from jaxdist.training.step import State
from jaxdist.training.train import Training


class Monitor(Protocol):
    """Evaluates the states of a run, and saves the best."""

    best: int | None
    """The step of the best state; None if there is none."""

    def evaluate(self, step: int, state: State) -> dict[str, Any]:
        """Evaluates the state after `step` steps; returns the record for `judged` in `metrics.jsonl`."""

    def verdicts(self, records: list[dict[str, Any]]) -> Mapping[str, Any]:
        """The outcome by name, from the last evaluation and the records of training: NamedTuples with `words`."""

    def plot(self, records: list[dict[str, Any]]) -> None:
        """Plots the records of training into the run's folder."""


def monitor_for(training: Training, folder: Path) -> Monitor | None:
    """The monitor of a run's objective; None for a plain loss.

    Args:
        training: the run's experiment and program.
        folder: the run's folder, in which the best state is saved.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> monitor_for(prepare(small), Path('nowhere')) is None
    True
    """
    return None if training.objective is None else ConstraintMonitor(training, folder)
