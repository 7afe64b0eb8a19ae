"""A run: training that leaves a folder behind, from which it can be repeated and gone on with."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist import cluster
from jaxdist.core.errors import JaxdistError
from jaxdist.core.workers import abstract
from jaxdist.training.checkpoint import Checkpoints, Restored, lock
from jaxdist.training.experiment import Experiment, ExperimentError, differences, from_json, load, to_json
from jaxdist.training.monitor import monitor_for
from jaxdist.training.plan import sent_each_step, traffic
from jaxdist.training.resize import changes, resized, saved_by
from jaxdist.training.run_folder import Log
from jaxdist.training.step import State, means
from jaxdist.training.train import Training, evaluate, first_state, make_program, prepare, train


class Diverged(JaxdistError, RuntimeError):  # noqa: N818 (an outcome, and no fault)
    """Training cannot go on: the loss has stopped being a finite number."""

    exit_code = 1


class Event(NamedTuple):
    """Something that happened in a run.

    Attributes:
        kind: `ready` (a `Ready`), `trained` or `held_out` (a record, as written to `metrics.jsonl`), `saved` (a step),
            and at the end either `stopped` (a step, which is saved) or `done` (a `Done`).
        value: what the kind says.
    """

    kind: str
    value: Any


class Ready(NamedTuple):
    """What a run begins with.

    Attributes:
        training: the experiment, made ready.
        step: the step that it goes on from.
        sent: bytes that a worker sends on an average step, None if that depends on the data.
        before: bytes that it sent in the steps before, with as many workers as there were then.
        damaged: checkpoints that were set aside, each as (folder, why).
        resized: of a run that goes on with other workers the number that there were, what each had of its own, of which
            each now has the mean, and what each had a part of, which is cut anew; None if nothing of these.
    """

    training: Training
    step: int
    sent: Fraction | None
    before: Fraction
    damaged: list[tuple[Path, str]]
    resized: tuple[int, list[str], list[str]] | None


class Done(NamedTuple):
    """How a run ended.

    Attributes:
        step: steps taken, all starts of the run together.
        taken: how many of them this start took; 0 if the run was at its end already.
        seconds: time trained, all starts together.
        problem: why there is no `loss.png`, or nothing.
        verdicts: the outcome of what the objective monitors, by name: NamedTuples with `words`.
        best: the step of the best state by the objective's monitor, which is in the folder's `best`; None if none is.
    """

    step: int
    taken: int
    seconds: float
    problem: str
    verdicts: Mapping[str, Any]
    best: int | None


def run(
    experiment: Experiment, folder: Path, *, command: str = '', stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Trains, writes the folder, and yields what happens; goes on with the run of this experiment that is there.

    On another number of workers than a checkpoint was saved with, the run goes on as `jaxdist.training.resize` says.

    The folder gets `experiment.json`, `run.json` (versions, commit, devices, commands), `metrics.jsonl`, `checkpoints/`
    and at the end `loss.png`; with an objective that has a monitor `best/` too, and at the end `verdict.json` and its
    plot. In several processes all call this; process 0 alone writes what is not a checkpoint.

    Args:
        experiment: what to train.
        folder: where to; made if it is not there.
        command: what was typed to start this, for the record.
        stop: asked after every step; True saves and ends.

    Raises:
        ExperimentError: the folder has a run of another experiment; the text names the fields that differ.
        CheckpointError: the folder is in use or cannot be written, or every checkpoint in it is damaged.
        Diverged: the held-out loss, or the training loss of two records, was not finite.

    >>> import tempfile
    >>> from jaxdist.training.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(
    ...     model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8, steps=2
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kinds = [event.kind for event in run(small, Path(folder))]
    >>> kinds
    ['ready', 'trained', 'held_out', 'saved', 'done']
    """
    training = prepare(experiment)
    checkpoints = Checkpoints(folder / 'checkpoints', experiment.keep)
    with ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(lock(folder))
        _refuse_another(training, folder, checkpoints.meta())
        stack.enter_context(checkpoints)
        found = checkpoints.restore(lambda meta: _as_saved(meta, training))
        state = _brought_here(found, training) if found else first_state(training)
        begin = found.step if found else 0
        log = Log(folder, begin)
        log.describe(training, command)
        sent = sent_each_step(traffic(training), training.workers.axis)
        before = Fraction(found.meta.get('sent', (sent or 0) * begin)) if found else Fraction(0)
        damaged = found.damaged if found else []
        ready = Ready(training, begin, sent, before, damaged, _resized(found, training))
        yield Event('ready', ready)
        yield from _steps(ready, state, checkpoints, log, stop)


def _steps(ready: Ready, state: State, checkpoints: Checkpoints, log: Log, stop: Callable[[], bool]) -> Iterator[Event]:
    """Trains from `state` on; saves, evaluates and records as the experiment says."""
    training, begin = ready.training, ready.step
    experiment = training.experiment
    monitor = monitor_for(training, log.folder)
    meta = {'experiment': to_json(experiment)}
    step = finite = begin
    for step, after, metrics in train(training, state):
        last = step == experiment.steps
        ended = not last and _all_stop(stop, step, experiment)
        if last or step % experiment.log_every == 0:
            cost = {} if ready.sent is None else {'sent': round(_sent_by(step, ready))}
            record = log.write({'step': step, **means(metrics), **cost})
            yield Event('trained', record)
            finite = _last_finite(record, finite, experiment)
        if last or step % experiment.evaluate_every == 0:
            judged = {'judged': monitor.evaluate(step, after)} if monitor else {}
            record = log.write({'step': step, 'held_out': evaluate(training, after), **judged})
            yield Event('held_out', record)
            _refuse_broken(record, finite)
        if last or ended or step % experiment.save_every == 0:
            checkpoints.save(step, after, {**meta, 'sent': str(_sent_by(step, ready))})
            yield Event('saved', step)
        if ended:
            checkpoints.wait()
            yield Event('stopped', step)
            return
    checkpoints.wait()
    verdicts = monitor.verdicts(log.records) if monitor and step > begin else {}
    log.conclude(verdicts)
    plot = log.plot(training, monitor) if step > begin else ''
    yield Event('done', Done(step, step - begin, log.seconds, plot, verdicts, monitor.best if monitor else None))


def _sent_by(step: int, ready: Ready) -> Fraction:
    """Bytes that a worker has sent after so many steps."""
    return ready.before + (ready.sent or 0) * (step - ready.step)


def _all_stop(stop: Callable[[], bool], step: int, experiment: Experiment) -> bool:
    """Whether to stop; several processes ask each other only when they record, or they would wait at each step."""
    if jax.process_count() == 1:
        return stop()
    return step % experiment.log_every == 0 and cluster.anyone(stop())


def _last_finite(record: dict[str, Any], finite: int, experiment: Experiment) -> int:
    """The newest step that is known to have been taken, and finite; two records in a row without one end the run."""
    if math.isfinite(record['loss']) and record['skipped'] < 1:
        return int(record['step'])
    if experiment.guard and record['step'] - finite < 2 * experiment.log_every:
        return finite
    guard = 'the guard left these steps out, and none came right' if experiment.guard else 'the guard is off'
    raise _diverged(*_not_finite(record), record['step'], finite, guard)


def _refuse_broken(record: dict[str, Any], finite: int) -> None:
    """The guard judges gradients; parameters that are past hope can still have one, and show in the held-out loss."""
    loss = record['held_out']['loss']
    if not math.isfinite(loss):
        raise _diverged('held-out loss', loss, record['step'], finite, 'the parameters themselves have gone astray')


def _not_finite(record: dict[str, Any]) -> tuple[str, float]:
    """What of a record is not finite, and what it is instead."""
    groups = {group: each for group, each in record.items() if isinstance(each, dict)}
    values = {
        f'value of {name}, of the {group},': of['value'] for group, each in groups.items() for name, of in each.items()
    }
    of = f' of the loss, or of {", ".join(name for each in groups.values() for name in each)}' if values else ''
    every = {'loss': record['loss'], **values, f'gradient{of}': math.nan}
    return next((what, x) for what, x in every.items() if not math.isfinite(x))


def _diverged(what: str, value: float, step: int, finite: int, why: str) -> Diverged:
    seen = f'the training loss was last seen finite at step {finite}' if finite else 'it was never seen finite'
    return Diverged(
        f'the {what} is {value} at step {step}; {seen}; {why}. A smaller learning rate, clip_by_global_norm(1.0) in '
        'the line, or a look at the data may help'
    )


def _refuse_another(training: Training, folder: Path, meta: dict[str, Any] | None) -> None:
    """Says in what the run that the folder holds differs from this experiment, if it does."""
    path = folder / 'experiment.json'
    if meta is None and not path.exists():
        return
    ours, theirs = training.experiment, _experiment(meta) if meta else load(path)
    differ = differences(ours, theirs)
    if differ:
        raise ExperimentError(
            f'{folder} holds a run of another experiment; they differ in\n  ' + '\n  '.join(differ) + '\n'
            'Choose another folder, or go on with the experiment that is there.'
        )


def _experiment(meta: dict[str, Any]) -> Experiment:
    return from_json(meta['experiment'])


def _as_saved(meta: dict[str, Any], training: Training) -> State:
    """The shapes of a checkpoint's state, laid out for the devices that are here."""
    here, count = training.workers, _experiment(meta).mesh.workers
    if count == here.count:
        return training.program.state
    others = {name: n for name, n in (here.mesh.shape.items() if here.mesh else ()) if name != here.axis}
    there = abstract(count, here.axis, others)
    saved = make_program(training.experiment, training.data, training.model, there).state
    return saved_by(saved, training.program)


def _brought_here(found: Restored, training: Training) -> State:
    """The state of a checkpoint, for as many workers as there are now."""
    before, now = _experiment(found.meta).mesh.workers, training.workers.count
    if training.objective is not None:
        training.objective.check_resize(before, now)
    state: State = found.state if before == now else resized(found.state, training.program)
    return state


def _resized(found: Restored | None, training: Training) -> tuple[int, list[str], list[str]] | None:
    """See `Ready`."""
    averaged, cut = changes(training.program.layout)
    count = _experiment(found.meta).mesh.workers if found else training.workers.count
    return (count, averaged, cut) if (averaged or cut) and count != training.workers.count else None
