"""Data parallelism: a small byte-level transformer on the standard library's sources, with eight emulated workers.

./scripts/train configs/quickstart.py
./scripts/train configs/quickstart.py --update 'mean(codec=int8(), feedback=True) | adamw(learning_rate=3e-3)'
"""

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='mean() | adamw(learning_rate=3e-3)',
        model=Transformer(layers=2, width=128, heads=4),
        data=Text(context=64, held_out=0.02),
        mesh=Mesh(workers=8, emulate=True),
        batch=32,
        steps=400,
    )
