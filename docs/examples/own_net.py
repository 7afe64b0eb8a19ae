"""A flax model and a data set of one's own, as a config.

jaxdist train docs/examples/own_net.py
jaxdist train docs/examples/own_net.py --model.width 64 --update 'sgd(0.1) | average(every=10)'
"""

from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from jaxdist import Experiment
from jaxdist.core.types import Model, Task
from jaxdist.data import Data, from_arrays
from jaxdist.models import from_nnx
from jaxdist.training.experiment import Mesh


class Net(nnx.Module):
    def __init__(self, inputs: int, width: int, outputs: int, dropout: float, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(inputs, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(nnx.relu(self.norm(self.first(x))))
        return self.head(nnx.relu(self.second(x)))


@dataclass(frozen=True)
class OwnNet:
    """Two hidden layers with batch normalisation and dropout."""

    width: int = 64
    """Size of the hidden layers."""
    dropout: float = 0.1
    """Fraction of the hidden units that is dropped in training."""

    def build(self, task: Task) -> Model:
        """The model for a task of inputs [features]."""
        return from_nnx(lambda rngs: Net(task.shape[0], self.width, task.classes, self.dropout, rngs), task)


@dataclass(frozen=True)
class Spirals:
    """Two interleaved spirals."""

    points: int = 2048
    """Number of points."""
    noise: float = 0.02
    """Standard deviation of the points around the spirals."""

    def load(self) -> Data:
        """Points [2] with two labels."""
        rng = np.random.default_rng(0)
        label, radius = rng.integers(0, 2, self.points), rng.uniform(0.2, 1.0, self.points)
        angle = 5.0 * radius + np.pi * label
        x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
        return from_arrays(x + self.noise * rng.normal(size=x.shape), label, name='spirals')


def experiment() -> Experiment:
    return Experiment(
        update='mean(codec=int8(), feedback=True) | adamw(learning_rate=1e-2)',
        model=OwnNet(),
        data=Spirals(),
        mesh=Mesh(workers=8, simulate=True),
        batch=128,
        steps=200,
    )
