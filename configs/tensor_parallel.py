"""Hybrid parallelism: four workers, each with a transformer sharded over two devices; messages stay sharded alike.

./scripts/train configs/tensor_parallel.py --dry-run
"""

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='mean(codec=int8(), feedback=True) | adamw(learning_rate=3e-3)',
        model=Transformer(layers=2, width=128, heads=4),
        data=Text(context=64, held_out=0.01),
        mesh=Mesh(workers=4, model=2, emulate=True),
        batch=32,
        steps=200,
    )
