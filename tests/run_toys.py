"""A tiny experiment, and what tests of runs and of the command line do with it."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdist.training.checkpoint import Checkpoints
from jaxdist.data import Data, Digits
from jaxdist.training.experiment import Experiment, Mesh
from jaxdist.training.run_folder import read_records
from jaxdist.models import Perceptron
from jaxdist.training.run import Event, run
from jaxdist.core.types import Batch
from jaxdist.training.train import prepare

SMALL = Experiment(
    update='mean() | sgd(0.1)',
    model=Perceptron(hidden=(8,)),
    data=Digits(),
    mesh=Mesh(workers=4),
    batch=16,
    steps=7,
    log_every=1,
    evaluate_every=4,
    save_every=2,
)

CONFIG = """
from jaxdist.data import Digits
from jaxdist.training.experiment import Experiment, Mesh
from jaxdist.models import Perceptron


def experiment():
    return Experiment(
        update='mean() | sgd(0.1)', model=Perceptron(hidden=(8,)), data=Digits(), mesh=Mesh(workers=4),
        batch=16, steps=4, log_every=2, evaluate_every=4, save_every=2,
    )
"""
"""The same as a config, and shorter."""


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Jaxdist = Callable[..., Ended]
"""Calls the program with these words."""


def small(update: str, workers: int = 4, simulate: bool = False, **changes: Any) -> Experiment:
    return dataclasses.replace(SMALL, update=update, mesh=Mesh(workers=workers, simulate=simulate), **changes)


@dataclasses.dataclass(frozen=True)
class Poisoned(Digits):
    """Digits whose images are not numbers in some batches, counted from 1."""

    steps: tuple[int, ...] = ()

    def load(self) -> Data:
        data = super().load()

        def batch(seed: int, step: int, size: int, workers: int) -> Batch:
            made = data.batch(seed, step, size, workers)
            return {**made, 'x': made['x'] * np.float32('nan')} if step + 1 in self.steps else made

        return data._replace(batch=batch)


def finish(experiment: Experiment, folder: Path) -> list[Event]:
    return list(run(experiment, folder))


def train_until(step: int, experiment: Experiment, folder: Path) -> list[Event]:
    """Asks the run to stop after that step."""
    seen: list[Event] = []
    for event in run(experiment, folder, stop=lambda: bool(losses(folder)) and max(losses(folder)) >= step - 1):
        seen.append(event)
    assert (seen[-1].kind, seen[-1].value) == ('stopped', step)
    return seen


def kinds(events: Iterable[Event]) -> list[str]:
    return [event.kind for event in events]


def losses(folder: Path) -> dict[int, float]:
    """The recorded training losses by step."""
    return {record['step']: record['loss'] for record in read_records(folder) if 'loss' in record}


def saved(experiment: Experiment, folder: Path) -> tuple[int, list[np.ndarray]]:
    """The newest checkpoint: its step, and its leaves as they are on the device, keys as their data."""
    found = Checkpoints(folder / 'checkpoints').restore(prepare(experiment).program.state)
    assert found is not None
    is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = jax.tree.leaves(found.state)
    return found.step, [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves]
