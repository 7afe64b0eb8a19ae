"""A transformer with a mixture of experts in each block, on workers of four devices.

jaxdist train configs/mixture.py --steps 100
jaxdist train configs/mixture.py --update 'adamw(3e-3) | diloco(every=10, outer=sgd(0.7), codec=int4())' --steps 100
"""

from jaxdist.data import Text
from jaxdist.models import MixtureTransformer
from jaxdist.training.experiment import Experiment, Mesh


def experiment() -> Experiment:
    return Experiment(
        update='mean() | adamw(learning_rate=3e-3)',
        model=MixtureTransformer(layers=2, width=64, heads=4, mlp=2, experts=8),
        data=Text(context=64, held_out=0.01),
        mesh=Mesh(workers=2, expert=4, emulate=True),
        batch=32,
        steps=300,
    )
