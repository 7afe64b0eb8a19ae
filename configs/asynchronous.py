"""A straggler: sixteen simulated workers, of which one is ten times slower, with and without waiting for it.

./scripts/train configs/asynchronous.py
jaxdist compare configs/asynchronous.py --seeds 3 --target loss=0.155        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.clock.settings import Clock
from jaxdist.data import Digits
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='k_async(k=1) | sgd(learning_rate=0.02)',
        model=Perceptron(hidden=(64,)),
        data=Digits(),
        mesh=Mesh(workers=16, simulate=True),
        batch=128,
        steps=300,
        evaluate_every=20,
        clock=Clock(compute='lognormal(mean=0.05, sigma=0.3)', slow=(10.0,)),
    )


def sweep() -> Iterator[Experiment]:
    """Synchronous; with backup workers; and asynchronous, by one and by four messages, bounded or not."""
    for update in (
        'mean() | sgd(learning_rate=0.2)',
        'k_sync(k=12) | sgd(learning_rate=0.2)',
        'ssp(bound=4) | sgd(learning_rate=0.02)',
        'k_async(k=1) | sgd(learning_rate=0.02)',
        'ringmaster(limit=16) | sgd(learning_rate=0.02)',
        'k_async(k=4) | sgd(learning_rate=0.1)',
        'k_batch_async(k=4) | sgd(learning_rate=0.1)',
    ):
        yield dataclasses.replace(experiment(), update=update)
