"""Local SGD with non-IID data: eight simulated workers, each with its own digits, average parameters every few steps.

./scripts/train configs/local.py
./scripts/train configs/local.py --set average.every=100
jaxdist compare configs/local.py --seeds 3        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Digits, Dirichlet
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='sgd(learning_rate=0.1) | average(every=10)',
        model=Perceptron(hidden=(64,)),
        data=Digits(division=Dirichlet(alpha=0.3)),
        mesh=Mesh(workers=8, simulate=True),
        batch=128,
        steps=600,
    )


def sweep() -> Iterator[Experiment]:
    """Averages gradients at every step; then parameters every 10 steps, every 100, and every 10 sent in int8."""
    base = experiment()
    for update in (
        'mean() | sgd(learning_rate=0.1)',
        'sgd(learning_rate=0.1) | average(every=10)',
        'sgd(learning_rate=0.1) | average(every=100)',
        'sgd(learning_rate=0.1) | average(every=10, codec=int8(), feedback=True)',
    ):
        yield dataclasses.replace(base, update=update)
