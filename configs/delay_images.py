"""Delayed gradients with and without compensation: a small convolutional network on Fashion-MNIST, four workers.

./scripts/train configs/delay_images.py
jaxdist compare configs/delay_images.py --seeds 3        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import FashionMNIST
from jaxdist.models import ConvNet
from jaxdist.training.experiment import Experiment, Mesh

SGD = 'sgd(learning_rate=0.1)'


def experiment() -> Experiment:
    return Experiment(
        update=f'dc_asgd(steps=8, strength=2.0, adaptive=True) | mean() | {SGD}',
        model=ConvNet(),
        data=FashionMNIST(),
        mesh=Mesh(workers=4, simulate=True),
        batch=64,
        steps=600,
        log_every=20,
        evaluate_every=600,
        save_every=600,
    )


def sweep() -> Iterator[Experiment]:
    """No delay; then for each delay: uncorrected, with a staleness-aware step size, and compensated."""
    transformations = ['']
    for steps in (4, 8):
        transformations += [
            f'delay(steps={steps}) | ',
            f'delay(steps={steps}, damping=1.0) | ',
            f'dc_asgd(steps={steps}, strength=10.0) | ',
            f'dc_asgd(steps={steps}, strength=2.0, adaptive=True) | ',
        ]
    transformations += ['delay(steps=(0, 2, 4, 8)) | ', 'dc_asgd(steps=(0, 2, 4, 8), strength=2.0, adaptive=True) | ']
    for first in transformations:
        yield dataclasses.replace(experiment(), update=f'{first}mean() | {SGD}')
    for rate in (0.05, 0.03):  # to compare compensation with a smaller learning rate
        for first in ('delay(steps=8) | ', 'dc_asgd(steps=8, strength=2.0, adaptive=True) | '):
            yield dataclasses.replace(experiment(), update=f'{first}mean() | sgd(learning_rate={rate})')
