"""Damping of a multiplier: a linear classifier of squared norm 1 on a small table, with all rows at every step.

jaxdist train configs/damping.py
jaxdist compare configs/damping.py --seeds 3        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Table
from jaxdist.models import Perceptron
from jaxdist.training.experiment import ConstraintSettings, Experiment, Mesh

HOLD = ("squared_norm(bound=1.0, path='.*kernel')",)


def experiment() -> Experiment:
    return Experiment(
        update='mean() | sgd(0.1)',
        model=Perceptron(hidden=()),
        data=Table('breast_cancer'),
        mesh=Mesh(workers=5, simulate=True),
        batch=455,  # all training rows
        steps=600,
        constraints=ConstraintSettings(HOLD, dual='nupi(ki=0.02, kp=0.5)'),
        log_every=1,
        evaluate_every=600,
        save_every=600,
    )


def sweep() -> Iterator[Experiment]:
    """Plain ascent; a controller with increasing gains; momentum; augmented Lagrangians; and no bound."""
    for dual in ('sgd(0.02)', *(f'nupi(ki=0.02, kp={kp})' for kp in (0.1, 0.5, 1.0, 5.0))):
        yield dataclasses.replace(experiment(), constraints=ConstraintSettings(HOLD, dual))
    for dual in ('sgd(0.02, momentum=0.5)', 'sgd(0.02, momentum=0.9)', 'sgd(0.002, momentum=0.9)'):
        yield dataclasses.replace(experiment(), constraints=ConstraintSettings(HOLD, dual))
    for penalty in (0.1, 1.0):
        yield dataclasses.replace(experiment(), constraints=ConstraintSettings(HOLD, 'sgd(0.02)', penalty))
    ascent = 'scale_by_penalty() | sgd(1.0)'  # the method of multipliers: steps as long as the penalty
    for penalty in (0.1, 0.5, 'growing(start=0.02, most=0.5)'):
        yield dataclasses.replace(experiment(), constraints=ConstraintSettings(HOLD, ascent, penalty))
    yield dataclasses.replace(experiment(), constraints=ConstraintSettings(HOLD, 'set_to_zero()'))
