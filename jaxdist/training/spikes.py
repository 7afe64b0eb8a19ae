"""Spikes of the training loss, and the checkpoint to go back to (Chowdhery et al. 2022, section 5.1).

Their runs went back about 100 steps and skipped 200 to 500 batches, by hand. Here those batches are skipped that were
read in the steps which are taken back.
"""

import itertools
import math
import statistics
from typing import Any, NamedTuple

from jaxdist.training.diverged import Diverged
from jaxdist.training.experiment import Experiment

WINDOW = 10
"""Records of the training loss whose median a loss is compared with."""


class Spike(NamedTuple):
    """A loss far above those before it.

    Attributes:
        step: the step of its record.
        loss: the loss.
        median: the median of the records before.
        before: the step of the record before.
    """

    step: int
    loss: float
    median: float
    before: int


def find_spike(records: list[dict[str, Any]], ratio: float) -> Spike | None:
    """The spike that the last record of training is; None if it is none.

    Args:
        records: the run's records.
        ratio: the loss of a spike, in medians of the records before; 0 finds none.

    >>> records = [{'step': step, 'loss': loss} for step, loss in ((10, 2.0), (20, 1.5), (30, 9.0))]
    >>> find_spike(records, 3.0)
    Spike(step=30, loss=9.0, median=1.75, before=20)
    """
    finite = (record for record in reversed(records) if math.isfinite(record.get('loss') or math.nan))
    last, *before = [*itertools.islice(finite, WINDOW + 1)] or [{'loss': 0.0}]
    if not before:
        return None
    median = statistics.median(record['loss'] for record in before)
    if not 0 < ratio * median < last['loss']:
        return None
    return Spike(last['step'], last['loss'], median, before[0]['step'])


def step_before(spike: Spike, saved: list[int], rewinds: int, experiment: Experiment) -> int:
    """The newest checkpoint from before a spike.

    One that no record has followed before the spike may have caused it: a batch raises the loss of the next step. So a
    run that spikes again at once goes back further.

    Args:
        spike: the spike.
        saved: the steps of the checkpoints.
        rewinds: how often the run has gone back.
        experiment: the run's experiment.

    Raises:
        Diverged: there is no such checkpoint, or the run has gone back as often as it may.

    >>> step_before(Spike(30, 9.0, 1.75, before=20), [0, 10, 20], 0, Experiment())
    10
    """
    times = spike.loss / spike.median
    words = f'the training loss is {spike.loss:.4g} at step {spike.step}, {times:.3g} times the median'
    if rewinds >= experiment.rewinds:
        raise Diverged(
            f'{words} of the records before, and the run has gone back {rewinds} times (--rewinds). Try a smaller '
            'learning rate or clip_by_global_norm(1.0) in the line, and check the data'
        )
    good = [step for step in saved if step < spike.before]
    if not good:
        raise Diverged(
            f'{words} of the records before, and no checkpoint from before step {spike.before} is left to go back to: '
            'keep more of them (--keep), or record more often (--log-every)'
        )
    return max(good)
