"""The position of a data set's iterator, which is saved with each checkpoint."""

from typing import Any

import jax

from jaxdist import cluster
from jaxdist.core.errors import InputError
from jaxdist.data.streams import Stream
from jaxdist.training.skipped import skipped_by
from jaxdist.training.train import Training


def position(training: Training, step: int) -> dict[str, Any]:
    """What a checkpoint's meta says about the position of the data before this step; {} for data without an iterator.

    Every process calls this. The meta has the positions of all processes that each read a part.

    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> position(prepare(Experiment(mesh=Mesh(workers=2, simulate=True))), 3)
    {}
    """
    stream, experiment = training.data.batch, training.experiment
    if not isinstance(stream, Stream):
        return {}
    here = stream.position(experiment.seed, training.skipped.batch(step), experiment.batch)
    return {'reading': cluster.gather(here) if stream.per_process else [here]}


def resume(training: Training, step: int, meta: dict[str, Any]) -> None:
    """Moves the data's iterator to the position in a checkpoint's meta; does nothing for data without an iterator.

    Raises:
        InputError: the positions are those of another number of processes.

    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> resume(prepare(Experiment(mesh=Mesh(workers=2, simulate=True))), 3, {})
    """
    stream, experiment = training.data.batch, training.experiment
    if not isinstance(stream, Stream) or 'reading' not in meta:
        return
    positions = meta['reading']
    if len(positions) != stream.parts:
        raise InputError(
            f'step {step} was saved by {len(positions)} processes that each read their part of the data, and now there '
            f'are {stream.parts}: start {len(positions)}, or read whole batches in every process (per_process=False), '
            'whose number may change'
        )
    here = positions[jax.process_index() if stream.per_process else 0]
    # The run may have gone back to this checkpoint after it was saved: the batches since are then read and skipped.
    saved, now = skipped_by([], meta).batch(step), training.skipped.batch(step)
    stream.seek(experiment.seed, saved, experiment.batch, here)
    for batch in range(saved, now):
        stream(experiment.seed, batch, experiment.batch, training.workers.count)
