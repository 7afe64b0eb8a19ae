"""A small transformer whose steps take a fixed time more, as on an accelerator; one learner may be slower.

jaxdist learners experiments/learners/paced.py --quorum 3
"""

import dataclasses
import os
import time

from jaxdist.core.types import Batch
from jaxdist.data import Data, Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh

NESTEROV = 'outer=sgd(0.7, momentum=0.5, nesterov=True)'
"""The published momentum of 0.9 averages over too many rounds for a run of fifteen."""


@dataclasses.dataclass(frozen=True)
class Paced(Text):
    """Text whose batches take some time; outside of a learner none."""

    seconds: float = 0.1
    """Time of a batch."""
    slow: float = 1.0
    """The time of learner 0, relative to the others'."""

    def load(self) -> Data:
        """Loads the text."""
        data, learner = super().load(), os.environ.get('JAXDIST_LEARNER')
        pause = {None: 0.0, '0': self.slow * self.seconds}.get(learner, self.seconds)

        def batch(seed: int, step: int, size: int, workers: int) -> Batch:
            time.sleep(pause)
            return data.batch(seed, step, size, workers)

        return data._replace(batch=batch)


def experiment() -> Experiment:
    return Experiment(
        update=f'adamw(3e-3) | diloco(every=10, {NESTEROV})',
        model=Transformer(layers=1, width=64, heads=2),
        data=Paced(context=32, held_out=0.01),
        mesh=Mesh(workers=4, simulate=True),
        batch=32,
        steps=200,
        log_every=20,
        evaluate_every=1000,
        save_every=20,
    )
