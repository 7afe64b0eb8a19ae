"""A run: training that leaves a folder behind, from which it can be repeated and gone on with."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist import cluster
from jaxdist.checkpoint import Checkpoints, lock
from jaxdist.experiment import Experiment, ExperimentError, differences, load, to_json
from jaxdist.folder import Log
from jaxdist.plan import sent_each_step, traffic
from jaxdist.step import State, means
from jaxdist.train import Training, evaluate, first_state, prepare, train


class Diverged(RuntimeError):
    """Training cannot go on: the loss has stopped being a finite number."""


class Event(NamedTuple):
    """Something that happened in a run.

    Attributes:
        kind: `ready` (the training, and where it begins), `trained` or `held_out` (a record, as written to
            `metrics.jsonl`), `saved` (a step), `stopped` (before the end, a step) or `done` (the last record).
        value: what the kind says.
    """

    kind: str
    value: Any


class Ready(NamedTuple):
    """What a run begins with: `damaged` lists checkpoints that were set aside, each as (folder, why)."""

    training: Training
    step: int
    sent: float | None
    damaged: list[tuple[Path, str]]


def run(
    experiment: Experiment, folder: Path, *, command: str = '', stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Trains, writes the folder, and yields what happens. Where the folder has a run of this experiment, goes on with it.

    The folder gets `experiment.json`, `run.json` (versions, commit, device, commands), `metrics.jsonl`, `checkpoints/`, and
    at the end `loss.png`. In several processes all call this; process 0 alone writes what is not a checkpoint.

    Args:
        experiment: what to train.
        folder: where to; made if it is not there.
        command: what was typed to start this, for the record.
        stop: asked after every step; True saves and ends.

    Raises:
        ExperimentError: the folder has a run of another experiment; the text names the fields that differ.
        CheckpointError: the folder is in use or cannot be written, or every checkpoint in it is damaged.
        Diverged: no step since the last record had a finite loss.

    >>> import tempfile
    >>> from jaxdist.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8, steps=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kinds = [event.kind for event in run(small, Path(folder))]
    >>> kinds
    ['ready', 'trained', 'held_out', 'saved', 'done']
    """
    training = prepare(experiment)
    with ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(lock(folder))
        _refuse_another(experiment, folder)
        checkpoints = stack.enter_context(Checkpoints(folder / 'checkpoints', experiment.keep))
        found = checkpoints.restore(training.program.state)
        state = found.state if found else first_state(training)
        begin = found.step if found else 0
        log = Log(folder, begin)
        log.describe(training, command)
        rate = sent_each_step(traffic(training), training.where.axis)
        sent = None if rate is None else float(rate)
        yield Event('ready', Ready(training, begin, sent, found.damaged if found else []))
        yield from _steps(training, state, checkpoints, log, sent, stop)


def _steps(
    training: Training, state: State, checkpoints: Checkpoints, log: Log, sent: float | None, stop: Callable[[], bool]
) -> Iterator[Event]:
    """Trains from `state` on; saves, evaluates and records as the experiment says."""
    experiment, saved, finite = training.experiment, int(state.step), int(state.step)
    meta = {'experiment': to_json(experiment)}
    record: dict[str, Any] = {}
    for step, state, metrics in train(training, state):
        last = step == experiment.steps
        if last or step % experiment.log_every == 0:
            numbers = means(metrics)
            finite = _check_finite(numbers, step, finite, experiment)
            yield Event('trained', log.write({'step': step, **numbers, **({} if sent is None else {'sent': sent * step})}))
        if last or step % experiment.evaluate_every == 0:
            record = log.write({'step': step, 'held_out': evaluate(training, state)})
            yield Event('held_out', record)
        ended = not last and _all_stop(stop, step, experiment)
        if last or ended or step % experiment.save_every == 0:
            checkpoints.save(step, state, meta)
            saved = step
            yield Event('saved', step)
        if ended:
            checkpoints.wait()
            yield Event('stopped', saved)
            return
    checkpoints.wait()
    log.plot(training)
    yield Event('done', record)


def _all_stop(stop: Callable[[], bool], step: int, experiment: Experiment) -> bool:
    """Whether to stop; several processes ask each other only when they record, to agree without waiting at each step."""
    if jax.process_count() == 1:
        return stop()
    return step % experiment.log_every == 0 and bool(cluster.agree(int(stop())))


def _check_finite(numbers: dict[str, float], step: int, finite: int, experiment: Experiment) -> int:
    """The newest step that is known to have had a finite loss; two records in a row without one end the run."""
    if math.isfinite(numbers['loss']):
        return step
    if experiment.guard and step - finite < 2 * experiment.log_every:
        return finite
    why = 'the guard left these steps out, and none came right' if experiment.guard else 'the guard is off (guard=False)'
    raise Diverged(
        f'the loss is {numbers["loss"]} at step {step}; it was last seen finite at step {finite}; {why}. '
        'A smaller learning rate, clip_by_global_norm(1.0) in the line, or a look at the data may help'
    )


def _refuse_another(experiment: Experiment, folder: Path) -> None:
    path = folder / 'experiment.json'
    if path.exists():
        differ = differences(experiment, load(path))
        if differ:
            raise ExperimentError(
                f'{folder} holds a run of another experiment; they differ in\n  ' + '\n  '.join(differ) + '\n'
                'Choose another folder, or go on with the experiment that is there.'
            )
