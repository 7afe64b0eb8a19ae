"""Decentralised training on a ring: sixteen simulated workers, each with digits of a few classes alone.

./scripts/train configs/gossip.py
jaxdist compare configs/gossip.py --seeds 3        (the sweep below)
jaxdist tune configs/gossip.py --trials 6 --seeds 3        (each at its best learning rate)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.clock.link import Link
from jaxdist.clock.settings import Clock
from jaxdist.data import ByLabel, Digits
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='track() | sgd(learning_rate=0.3) | gossip(adapt_first=False)',
        model=Perceptron(hidden=(64,)),
        data=Digits(division=ByLabel(labels_each=1)),
        mesh=Mesh(workers=16, simulate=True),
        batch=128,
        steps=1000,
        evaluate_every=200,
        # Sending all parameters once takes as long as a step's computation.
        clock=Clock(compute='lognormal(mean=0.02, sigma=0.3)', link=Link(bandwidth=1e6)),
    )


def sweep() -> Iterator[Experiment]:
    """All-reduce; then gossip, on a ring and one peer at a time, and what corrects it for data that differ."""
    base, sgd = experiment(), 'sgd(learning_rate=0.3)'
    for update in (
        f'mean() | {sgd}',
        f'{sgd} | gossip()',
        f'{sgd} | gossip(graph=one_peer_exponential())',
        f'{sgd} | choco(codec=int4(block=64), gamma=0.5)',
        f'{sgd} | quasi_global() | gossip()',
        f'{sgd} | exact_diffusion()',
        f'track() | {sgd} | gossip(adapt_first=False)',
    ):
        yield dataclasses.replace(base, update=update)


def space() -> dict[str, str]:
    return {'sgd.learning_rate': 'log(0.03, 3.0)'}
