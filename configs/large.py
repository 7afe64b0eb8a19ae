"""A transformer of 806 million parameters, to plan for many devices.

jaxdist plan configs/large.py --search --devices 256 --machine v5e
"""

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='mean() | adamw(learning_rate=3e-4)',
        model=Transformer(layers=16, width=2048, heads=16, stacked=True),
        data=Text(context=2048),
        mesh=Mesh(workers=8),
        batch=512,
        precision='bfloat16',
    )
