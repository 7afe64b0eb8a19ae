"""A network with a bounded fraction of nonzero weights: sparsity as a constraint, on digits.

jaxdist train configs/sparsity.py
jaxdist compare configs/sparsity.py --seeds 3        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Digits
from jaxdist.models import Perceptron
from jaxdist.training.experiment import ConstraintSettings, Experiment, Mesh

BOUNDS = (0.5, 0.2, 0.1)
DUAL = 'sgd(0.02)'


def experiment() -> Experiment:
    return Experiment(
        update='mean() | adam(3e-3)',
        model=Perceptron(hidden=(64,)),
        data=Digits(),
        mesh=Mesh(workers=4, simulate=True),
        batch=256,
        steps=1000,
        constraints=ConstraintSettings(('density(bound=0.2)',), DUAL),
        log_every=10,
        evaluate_every=200,
        save_every=1000,
    )


def sweep() -> Iterator[Experiment]:
    """No bound (0.999 is never active), then three bounds."""
    for bound in (0.999, *BOUNDS):
        yield dataclasses.replace(experiment(), constraints=ConstraintSettings((f'density(bound={bound})',), DUAL))
