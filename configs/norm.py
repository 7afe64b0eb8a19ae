"""A network whose norm is bounded by a multiplier, on a small table: training under a constraint.

jaxdist train configs/norm.py
"""

from jaxdist.data import Table
from jaxdist.experiment import Constraints, Experiment, Mesh
from jaxdist.models import Perceptron


def experiment() -> Experiment:
    return Experiment(
        update='mean() | sgd(0.5)',
        model=Perceptron(hidden=()),
        data=Table('breast_cancer'),
        mesh=Mesh(workers=4, simulate=True),
        batch=456,
        steps=400,
        constraints=Constraints(hold=("squared_norm(bound=1.0, path='.*kernel')",), dual='nupi(ki=0.02, kp=0.1)'),
        log_every=40,
        evaluate_every=200,
        save_every=200,
    )
