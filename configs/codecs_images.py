"""Held-out quality with each codec: a small convolutional network on Fashion-MNIST, with eight workers or more.

jaxdist compare configs/codecs_images.py --seeds 3
jaxdist compare configs/codecs_images.py --seeds 3 --mesh.workers 16
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import FashionMNIST
from jaxdist.models import ConvNet
from jaxdist.training.experiment import Experiment, Mesh

SGD = 'sgd(learning_rate=0.05, momentum=0.9, nesterov=True)'
MEANS = (
    'mean()',
    'mean(codec=bf16())',
    'mean(codec=int8(), feedback=True)',
    "mean(codec=int8(), feedback=True, exchange='all_reduce')",
    'mean(codec=int4(), feedback=True)',
    'mean(codec=int4())',
    'mean(codec=int2(), feedback=True)',
    'mean(codec=int2())',
    'mean(codec=natural())',
    'mean(codec=qsgd(bits=4))',
    'mean(codec=ternary())',
    'mean(codec=sign(block=64), feedback=True)',
    'mean(codec=sign(block=64))',
    'mean(codec=top_k(k=41), feedback=True)',
    'mean(codec=top_k(k=41))',
    'mean(codec=random_k(k=41), feedback=True)',
    'mean(codec=power_sgd(rank=4), feedback=True)',
    'mean(codec=power_sgd(rank=2), feedback=True)',
    'mean(codec=power_sgd(rank=2))',
)


def experiment() -> Experiment:
    return Experiment(
        update=f'mean(codec=int4(), feedback=True) | {SGD}',
        model=ConvNet(),
        data=FashionMNIST(),
        mesh=Mesh(workers=8, simulate=True),
        batch=128,
        steps=500,
        log_every=20,
        evaluate_every=500,
        save_every=500,
    )


def sweep() -> Iterator[Experiment]:
    """The same optimiser after each mean; momentum before the mean for majority vote and EF21, as in their papers."""
    for mean in MEANS:
        yield dataclasses.replace(experiment(), update=f'{mean} | {SGD}')
    for update in (
        'ema(0.9, debias=False) | mean(codec=majority()) | sgd(learning_rate=1e-3)',
        "ema(0.9, debias=False) | mean(codec=top_k(k=410), feedback='ef21') | sgd(learning_rate=0.5)",
    ):
        yield dataclasses.replace(experiment(), update=update)
