"""Held-out quality with each codec: a small byte-level transformer with AdamW, with eight workers or more.

jaxdist compare configs/codecs_text.py --seeds 3
jaxdist compare configs/codecs_text.py --seeds 3 --mesh.workers 16
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh

MEANS = (
    'mean()',
    'mean(codec=int8(), feedback=True)',
    'mean(codec=int4(), feedback=True)',
    'mean(codec=int4())',
    'mean(codec=int2(), feedback=True)',
    'mean(codec=sign(block=64), feedback=True)',
    'mean(codec=sign(block=64))',
    'mean(codec=top_k(k=41), feedback=True)',
    'mean(codec=power_sgd(rank=4), feedback=True)',
    'mean(codec=power_sgd(rank=2), feedback=True)',
)


def experiment() -> Experiment:
    return Experiment(
        update='mean(codec=int4(), feedback=True) | adamw(learning_rate=3e-3)',
        model=Transformer(layers=1, width=64, heads=2),
        data=Text(context=64, held_out=0.01),
        mesh=Mesh(workers=8, simulate=True),
        batch=64,
        steps=300,
        log_every=20,
        evaluate_every=300,
        save_every=300,
    )


def sweep() -> Iterator[Experiment]:
    """The same optimiser after each mean."""
    for mean in MEANS:
        yield dataclasses.replace(experiment(), update=f'{mean} | adamw(learning_rate=3e-3)')
