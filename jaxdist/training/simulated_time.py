"""Simulated time of an experiment: its clock, and the collectives of its traced step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdist import ledger, line
from jaxdist.clock.link import Link
from jaxdist.clock.lockstep import Communication, Times, lockstep
from jaxdist.core.program import Program
from jaxdist.training.experiment import ExperimentError
from jaxdist.training.step import State
from jaxdist.training.train import Training, first_batch

SECONDS = 'simulated_seconds'
"""The name of a run's simulated seconds in its records and checkpoints."""


class Simulated(NamedTuple):
    """The simulated time of a run.

    Attributes:
        times: with `ends` of each step, [T], for the present number of workers.
        before: seconds by which the steps before, with other numbers of workers, took longer or shorter than by
            `times`.
    """

    times: Any
    before: float = 0.0

    def at(self, step: int) -> float:
        """Seconds until every worker has taken this many steps."""
        return self.before + (float(self.times.ends[step - 1]) if step else 0.0)


def simulate(training: Training, begin: int, meta: Mapping[str, Any]) -> Simulated | None:
    """The simulated time of a run; None without a clock.

    Args:
        training: the experiment.
        begin: the step that it resumes from.
        meta: what is saved there.

    Raises:
        ExperimentError, InputError: see `simulated_times`.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> simulate(prepare(small), 0, {})
    """
    times = ended_steps(training)
    if times is None:
        return None
    now = Simulated(times)
    return now._replace(before=meta.get(SECONDS, now.at(begin)) - now.at(begin))


class Ended(NamedTuple):
    """When each step is done, in seconds, [T]."""

    ends: np.ndarray


def ended_steps(training: Training) -> Ended | None:
    """When each step is done, by the experiment's clock; None without one. Raises as `simulated_times`.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> ended_steps(prepare(small))
    """
    if training.arrivals is not None:
        return Ended(training.arrivals.ends(training.experiment.steps))
    times = simulated_times(training)
    return None if times is None else Ended(times.ends)


def simulated_times(training: Training) -> Times | None:
    """When each worker has taken each step, by the experiment's clock; None without one.

    What a worker's devices send each other belongs to its compute time.

    Raises:
        ExperimentError: how often a collective runs depends on data.
        InputError: the clock is not one for this number of workers and steps.

    >>> import dataclasses
    >>> from jaxdist.clock.settings import Clock
    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> clock = Clock(compute='constant(mean=1.0)', slow=(3.0,), link=Link(bandwidth=1e5))
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), batch=8, clock=clock, steps=2)
    >>> two = prepare(dataclasses.replace(small, mesh=Mesh(workers=2, simulate=True)))
    >>> simulated_times(two).ends  # 1244 bytes take 0.01244 s
    array([3.01244, 6.02488])
    """
    experiment = training.experiment
    compute = experiment.clock.table(training.workers.count, experiment.steps)
    if compute is None:
        return None
    return lockstep(compute, _communications(training, experiment.clock.link, line.overlap(experiment.update)))


def _communications(training: Training, link: Link, overlap: int) -> list[list[Communication]]:
    """The collectives of each step between workers."""
    workers, steps = training.workers, training.experiment.steps
    axis, placed = workers.axis, training.program.on_mesh()
    sent_at: list[list[Communication]] = [[] for _ in range(steps)]
    paths_at: list[list[set[str]]] = [[] for _ in range(steps)]
    for together in combined([s for s in _sendings(training, placed) if axis in s.collective.axes]):
        collective, runs, lag = together[0].collective, together[0].runs, _lag(together[0], overlap)
        if runs is None:
            raise ExperimentError(
                f'what {collective.kind} of {collective.dtype} sends depends on data: its time cannot be simulated '
                'ahead, so leave the clock out'
            )
        sent = sum(float(sending.collective.sent) for sending in together)
        pairs, sources, senders = together[0].pairs, None, np.ones(workers.count)
        if pairs:
            others = {source for source, target in pairs if source != target}
            sources = _sources(pairs, workers.count)
            sent *= workers.count / max(len(others), 1)  # it is the mean over all workers
            senders = np.isin(np.arange(workers.count), list(others)).astype(float)
        once = link.seconds(collective.kind, sent, workers.count) * senders
        paths, needs = {sending.path for sending in together}, frozenset().union(*(s.after for s in together))
        for step in np.flatnonzero(runs):
            after = tuple(place for place, others in enumerate(paths_at[step]) if others & needs)
            sent_at[step].append(Communication(once * int(runs[step]), sources, lag, after))
            paths_at[step].append(paths)
    return sent_at


def _lag(sending: ledger.Sending, overlap: int) -> int:
    """For how many steps it has lain ready; parameters and a batch are there when their step begins."""
    if 'batch' in sending.needs and len(sending.needs) > 1:
        return 0
    return 1 if sending.needs & {'params', 'batch'} else overlap


def combined(sendings: Sequence[ledger.Sending]) -> list[list[ledger.Sending]]:
    """Collectives that are sent as one, as XLA combines them: of a kind, in the same steps, and independent.

    >>> from fractions import Fraction
    >>> both = ledger.Collective(('workers',), 'all_reduce', 'float32', Fraction(8))
    >>> sending = lambda path, *after: ledger.Sending(both, np.array([1, 1]), frozenset(), path, frozenset(after), ())
    >>> [len(together) for together in combined([sending('0'), sending('1'), sending('2', '0')])]
    [2, 1]
    """
    groups: list[list[ledger.Sending]] = []
    last: dict[Any, list[ledger.Sending]] = {}
    for sending in sendings:
        runs = None if sending.runs is None else sending.runs.tobytes()
        key = (
            sending.collective.axes,
            sending.collective.kind,
            sending.collective.branch,
            runs,
            _lag(sending, 2),
            sending.pairs,
        )
        if key not in last or sending.after & {other.path for other in last[key]}:
            last[key] = []
            groups.append(last[key])
        last[key].append(sending)
    return groups


def _sendings(training: Training, placed: Program[State]) -> list[ledger.Sending]:
    key = jax.random.key(training.experiment.seed)
    batch = ledger.placed_batch(placed, first_batch(training))
    mesh = placed.workers.mesh
    assert mesh is not None
    initial = lambda: training.program.init(key)  # noqa: E731
    steps = training.experiment.steps
    return ledger.each_step(placed.step, placed.state, batch, mesh.shape, steps, initial=initial)


def _sources(pairs: Sequence[tuple[int, int]], workers: int) -> np.ndarray:
    """Whom each worker hears, [W, n]; itself in the places that are left."""
    heard: list[list[int]] = [[] for _ in range(workers)]
    for source, target in pairs:
        heard[target].append(source)
    most = max(map(len, heard))
    return np.array([each + [worker] * (most - len(each)) for worker, each in enumerate(heard)])
