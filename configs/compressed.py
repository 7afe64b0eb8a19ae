"""The quality cost of compression: a smaller quickstart transformer with exact means, 8-bit means and a delay.

jaxdist compare configs/compressed.py --seeds 3
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='mean(codec=int8(), feedback=True) | adamw(learning_rate=3e-3)',
        model=Transformer(layers=1, width=64, heads=2),
        data=Text(context=64, held_out=0.01),
        mesh=Mesh(workers=8, simulate=True),
        batch=64,
        steps=400,
    )


def sweep() -> Iterator[Experiment]:
    """An exact mean; 8 bits with and without feedback; a delay of four steps; parameters averaged every tenth step."""
    for update in (
        'mean() | adamw(learning_rate=3e-3)',
        'mean(codec=int8(), feedback=True) | adamw(learning_rate=3e-3)',
        "mean(codec=int8(rounding='stochastic')) | adamw(learning_rate=3e-3)",
        'mean() | delay(steps=4) | adamw(learning_rate=3e-3)',
        'adamw(learning_rate=3e-3) | average(every=10)',
        'adamw(learning_rate=3e-3) | average(every=10, codec=int8(), feedback=True)',
    ):
        yield dataclasses.replace(experiment(), update=update)
