"""Runs: training that writes a folder, from which it can be resumed and repeated."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist import cluster
from jaxdist.core.workers import abstract
from jaxdist.training import reading
from jaxdist.training.alike import check_data, check_processes, check_programs, shared
from jaxdist.training.checkpoint import Checkpoints, Restored
from jaxdist.training.diverged import check_held_out, last_finite
from jaxdist.training.experiment import Experiment, ExperimentError, to_json
from jaxdist.training.goodput import Account, Goodput
from jaxdist.training.metrics import means
from jaxdist.training.monitor import monitor_for
from jaxdist.training.plan import sent_each_step, traffic
from jaxdist.training.replicas import check_replicas
from jaxdist.training.resize import changes, resized, saved_by
from jaxdist.training.run_folder import Log, check_experiment, read_facts
from jaxdist.training.simulated_time import SECONDS, Simulated, simulate
from jaxdist.training.skipped import skipped_by
from jaxdist.training.spikes import Spike, find_spike, step_before
from jaxdist.training.step import State
from jaxdist.training.train import Training, evaluate, first_state, make_program, prepare, train


class Event(NamedTuple):
    """An event of a run.

    Attributes:
        kind: `ready` (its value is a `Ready`), `trained` or `held_out` (a record, as written to `metrics.jsonl`),
            `rewound` (a record, of a loss spike), `saved` (a step), and at the end either `stopped` (a step, which is
            saved) or `done` (a `Done`).
        value: the event's value, of the type given for its kind.
    """

    kind: str
    value: Any


class Ready(NamedTuple):
    """The start of a run.

    Attributes:
        training: the prepared experiment.
        step: the step that the run resumes from; 0 for a new run.
        sent: bytes that a worker sends on an average step; None if they depend on the data.
        sent_before: bytes that a worker has sent in the steps before, with the number of workers at the time.
        damaged: the checkpoints that were set aside, each as (folder, reason).
        resized: (former number of workers, paths of per-worker state that becomes its mean, paths of sharded state that
            is split again), for a run that resumes with another number of workers and has such state; else None.
        changed_code: files of the user's code that have changed since the run began.
        simulated: the simulated time; None without a clock.
    """

    training: Training
    step: int
    sent: Fraction | None
    sent_before: Fraction
    damaged: list[tuple[Path, str]]
    resized: tuple[int, list[str], list[str]] | None
    changed_code: list[str]
    simulated: Simulated | None


class Done(NamedTuple):
    """The end of a run.

    Attributes:
        step: steps taken since the run's first start.
        taken: steps taken since it was last resumed; 0 if it had already ended.
        seconds: seconds of training since the run's first start.
        problem: the reason why `loss.png` was not drawn; empty if it was.
        verdicts: the outcome of what the objective monitors, by name: NamedTuples with `words`.
        goodput: what became of the run's time, over all its starts.
        best: the step of the best state by the objective's monitor, saved in the folder's `best`; None without one.
    """

    step: int
    taken: int
    seconds: float
    problem: str
    verdicts: Mapping[str, Any]
    best: int | None
    goodput: Goodput


def run(
    experiment: Experiment, folder: Path, *, command: str = '', stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Trains, writes the folder, and yields events; resumes the run of this experiment if the folder contains one.

    With another number of workers than the checkpoint was saved with, its state is converted as in
    `jaxdist.training.resize`.

    The folder gets `experiment.json`, `run.json` (versions, commit, devices, commands), `metrics.jsonl`, `checkpoints/`
    and at the end `loss.png`; with an objective that has a monitor also `best/`, and at the end `verdict.json` and its
    plot. In a run of several processes all of them call this; only process 0 writes files other than checkpoints.

    Args:
        experiment: the experiment to train.
        folder: the run's folder, created if missing.
        command: the command line, for the record.
        stop: called after every step; True saves and ends.

    Raises:
        ExperimentError: the folder has a run of another experiment; the message names the fields that differ.
        UnlikeError: the processes do not have the same experiment, versions, data or program, or see other folders.
        DataChangedError: the data are not those that the run began with.
        CheckpointError: the folder is in use or cannot be written, or every checkpoint in it is damaged.
        Diverged: the held-out loss, or the training loss of two records, was not finite; or it spikes again and again.

    >>> import tempfile
    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(
    ...     model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8, steps=2
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kinds = [event.kind for event in run(small, Path(folder))]
    >>> kinds
    ['ready', 'trained', 'held_out', 'saved', 'done']
    """
    account = Account()
    check_processes(experiment, folder)
    training = prepare(experiment)
    check_programs(training)
    checkpoints = Checkpoints(folder / 'checkpoints', experiment.keep)
    with ExitStack() as stack:
        stack.enter_context(shared(folder))
        meta = checkpoints.meta()
        if meta is not None and 'learners' in meta:
            raise ExperimentError(f'{folder} contains a run of learners: go on with jaxdist learners {folder}')
        check_experiment(experiment, folder, meta)
        check_data(training, (meta or {}).get('data') or read_facts(folder).get('data', {}))
        stack.enter_context(checkpoints)
        cluster.doing('restore', 0)
        restored = checkpoints.restore(lambda meta: _saved_shapes(meta, training))
        state = _restored_state(restored, training) if restored else first_state(training)
        begin = restored.step if restored else 0
        log = Log(folder, begin)
        training = training._replace(skipped=skipped_by(log.records, restored.meta if restored else {}))
        if restored:
            reading.resume(training, begin, restored.meta)
        account.resume(folder, begin, log.seen, log.writes)
        changed = log.describe(training, command)
        sent = sent_each_step(traffic(training), training.workers.axis)
        before = Fraction(restored.meta.get('sent', (sent or 0) * begin)) if restored else Fraction(0)
        damaged = restored.damaged if restored else []
        simulated = simulate(training, begin, restored.meta if restored else {})
        resizing = _resized(restored, training)
        ready = Ready(training, begin, sent, before, damaged, resizing, changed, simulated)
        yield Event('ready', ready)
        if experiment.spike and restored is None:  # a first one to go back to
            checkpoints.save(0, state, _meta(0, ready))
            yield Event('saved', 0)
        while spike := (yield from _steps(ready, state, checkpoints, log, account, stop)):
            ready, state = _rewound(ready, spike, checkpoints, log)
            account.rewound(ready.step)
            yield Event('rewound', log.records[-1])


def _steps(
    ready: Ready, state: State, checkpoints: Checkpoints, log: Log, account: Account, stop: Callable[[], bool]
) -> Generator[Event, None, Spike | None]:
    """Trains from `state` on; saves, evaluates and records at the intervals of the experiment.

    Returns:
        The spike of the loss at which it ended; else None.
    """
    training, begin = ready.training, ready.step
    experiment = training.experiment
    monitor = monitor_for(training, log.folder)
    if spike := find_spike(log.records, experiment.spike):  # it was stopped there
        return spike
    step = finite = begin
    for step, after, metrics in train(training, state):
        last = step == experiment.steps
        ended = not last and not cluster.may_begin(step + 1, stop())
        if last or step % experiment.log_every == 0:
            cost = {} if ready.sent is None else {'sent': round(_sent_by(step, ready))}
            record = log.write(
                {'step': step, **means(metrics), **cost, **_seconds_by(step, ready), **cluster.pace(step)}
            )
            yield Event('trained', record)
            if not ended and (spike := find_spike(log.records, experiment.spike)):
                return spike
            finite = last_finite(record, finite, experiment)
        if last or step % experiment.evaluate_every == 0:
            cluster.doing('evaluate', step)
            judged = {'judged': monitor.evaluate(step, after)} if monitor else {}
            record = log.write({'step': step, 'held_out': evaluate(training, after), **judged})
            yield Event('held_out', record)
            check_held_out(record, finite)
        if last or ended or step % experiment.save_every == 0:
            cluster.doing('save', step)
            if experiment.check_replicas:
                check_replicas(after)
            checkpoints.save(step, after, _meta(step, ready))
            account.saved(step)
            yield Event('saved', step)
        if ended:
            checkpoints.wait()
            yield Event('stopped', step)
            return None
    cluster.doing('save', step)
    checkpoints.wait()
    verdicts = monitor.verdicts(log.records) if monitor and step > begin else {}
    log.conclude(verdicts)
    plot = log.plot(training, monitor) if step > begin else ''
    if step > begin:
        account.saved(step)
    best = monitor.best if monitor else None
    yield Event('done', Done(step, step - begin, log.seconds, plot, verdicts, best, account.goodput()))
    return None


def _meta(step: int, ready: Ready) -> dict[str, Any]:
    """What is saved with a state beside it."""
    training = ready.training
    return {
        'experiment': to_json(training.experiment),
        'data': {'sha256': training.data.facts.get('sha256')},
        'sent': str(_sent_by(step, ready)),
        'skipped': training.skipped.to_json(),
        **_seconds_by(step, ready),
        **reading.position(training, step),
    }


def _rewound(ready: Ready, spike: Spike, checkpoints: Checkpoints, log: Log) -> tuple[Ready, State]:
    """Goes back to the newest checkpoint from before a spike; the batches read since are skipped from now on."""
    training = ready.training
    checkpoints.wait()
    before = cluster.agree(checkpoints.steps())
    step = step_before(spike, before, training.skipped.rewinds, training.experiment)
    cluster.doing('restore', step)
    checkpoints.forget_after(step)
    restored = checkpoints.restore(lambda meta: _saved_shapes(meta, training))
    assert restored is not None
    skipped = training.skipped.rewound(restored.step, spike.step)
    # Written after later checkpoints are gone: a run that is killed in between finds the spike again.
    log.rewind(restored.step, {**spike._asdict(), **skipped.to_json()})
    sent = Fraction(restored.meta['sent'])
    ready = ready._replace(training=training._replace(skipped=skipped), step=restored.step, sent_before=sent)
    return ready, _restored_state(restored, training)


def _sent_by(step: int, ready: Ready) -> Fraction:
    """The bytes that a worker has sent by this step."""
    return ready.sent_before + (ready.sent or 0) * (step - ready.step)


def _seconds_by(step: int, ready: Ready) -> dict[str, float]:
    """The simulated seconds by this step, by name; {} without a clock."""
    return {} if ready.simulated is None else {SECONDS: ready.simulated.at(step)}


def _workers_before(meta: dict[str, Any]) -> int:
    return int(meta['experiment']['mesh']['workers'])


def _saved_shapes(meta: dict[str, Any], training: Training) -> State:
    """The shapes of a checkpoint's state, sharded over the present devices."""
    workers, count = training.workers, _workers_before(meta)
    if count == workers.count:
        return training.program.state
    if training.arrivals is not None:
        raise ExperimentError(
            f'the table of arrivals is of {count} workers: go on with --mesh.workers {count}, not with {workers.count}'
        )
    others = {name: n for name, n in (workers.mesh.shape.items() if workers.mesh else ()) if name != workers.axis}
    former = abstract(count, workers.axis, others)
    saved = make_program(training.experiment, training.data, training.model, former).state
    return saved_by(saved, training.program)


def _restored_state(restored: Restored, training: Training) -> State:
    """The state of a checkpoint, for the present number of workers."""
    before, now = _workers_before(restored.meta), training.workers.count
    if training.objective is not None:
        training.objective.check_resize(before, now)
    state: State = restored.state if before == now else resized(restored.state, training.program)
    return state


def _resized(restored: Restored | None, training: Training) -> tuple[int, list[str], list[str]] | None:
    """See `Ready.resized`."""
    averaged, split = changes(training.program.layout)
    count = _workers_before(restored.meta) if restored else training.workers.count
    return (count, averaged, split) if (averaged or split) and count != training.workers.count else None
