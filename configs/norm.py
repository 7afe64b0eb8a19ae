"""A network with bounded norms of its tensors, trained on few examples.

jaxdist train configs/norm.py
jaxdist compare configs/norm.py --seeds 3        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Digits
from jaxdist.models import Perceptron
from jaxdist.training.experiment import ConstraintSettings, Experiment, Mesh

ALL = 'all: squared_norm({})'
EACH = 'squared_norm({}, each=True)'
DUAL = 'nupi(ki=2e-4, kp=1e-3)'
FREE = ALL.format(1000)
"""A bound that is never active, and only has the norm recorded."""


def experiment() -> Experiment:
    return Experiment(
        update='mean() | sgd(0.2)',
        model=Perceptron(hidden=(64,)),
        data=Digits(held_out=0.9),
        mesh=Mesh(workers=4, simulate=True),
        batch=180,  # all training images, so that only the initial weights are random
        steps=800,
        constraints=ConstraintSettings(hold=(EACH.format(20),), dual=DUAL),
        log_every=20,
        evaluate_every=200,
        save_every=800,
    )


def sweep() -> Iterator[Experiment]:
    """No bound; bounds on the norm of all parameters, or of each tensor; weight decay that leads to the same norms."""
    for hold in (
        (FREE,),
        *((ALL.format(bound),) for bound in (80, 40, 20)),
        *((FREE, EACH.format(bound)) for bound in (40, 20, 10)),
    ):
        yield dataclasses.replace(experiment(), constraints=ConstraintSettings(hold, DUAL))
    for decay in (0.0025, 0.01, 0.058):
        yield dataclasses.replace(
            experiment(),
            update=f'mean() | add_decayed_weights({decay}) | sgd(0.2)',
            constraints=ConstraintSettings((FREE,), DUAL),
        )
