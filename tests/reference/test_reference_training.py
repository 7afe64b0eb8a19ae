"""Every kind of line matches its NumPy reference implementation, simulated and on a mesh.

Without a codec this is checked in float64. With one, float32 rounding could give an entry another code; the data are
such that no entry is near the edge between two codes (the reference measures it), so the codes are the same.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import numpy_training
import pytest
from reference_fixtures import EDGE, EXAMPLES, LOSSES, NETWORK, PLACES, PLANE, STEPS, WORKERS, normal_data, rows

from jaxdist import line
from jaxdist.algorithms._periodic import PeriodicState
from jaxdist.algorithms.mean import MeanState
from jaxdist.training.step import State, make_step


class Case(NamedTuple):
    """A line and its reference implementation.

    Attributes:
        line: the update line.
        reference: returns the reference's transformations, which have state.
        model: the reference's model.
        local: whether the workers' parameters may differ.
        weighted: whether examples have weights; without a codec, one worker at each step has none. (A worker without
            examples sends only its residual, so small that its float32 rounding errors are too large to compare.)
        everywhere: whether every number of workers is tried, simulated and on a mesh, rather than two setups.
    """

    line: str
    reference: Callable[[], list[numpy_training.Transformation]]
    model: numpy_training.Model
    local: bool = False
    weighted: bool = False
    everywhere: bool = False

    @property
    def coded(self) -> bool:
        """Whether a codec is in the line."""
        return 'codec' in self.line


def int8_mean(block: int, feedback: bool = False) -> numpy_training.TwoPhases:
    return numpy_training.TwoPhases(numpy_training.Int8(block), feedback)


CASES = {
    'sgd': Case(
        'mean() | sgd(0.2, momentum=0.9, nesterov=True)',
        lambda: [numpy_training.Mean(numpy_training.Exact()), numpy_training.Sgd(0.2, 0.9, nesterov=True)],
        NETWORK,
        weighted=True,
        everywhere=True,
    ),
    'adamw': Case(
        'mean() | adamw(learning_rate=0.03, weight_decay=0.1)',
        lambda: [numpy_training.Mean(numpy_training.Exact()), numpy_training.AdamW(0.03, 0.1)],
        NETWORK,
        weighted=True,
    ),
    'delay-after': Case(
        'mean() | delay(steps=3) | adamw(learning_rate=0.03, weight_decay=0.1)',
        lambda: [numpy_training.Mean(numpy_training.Exact()), numpy_training.Delay(3), numpy_training.AdamW(0.03, 0.1)],
        NETWORK,
        weighted=True,
    ),
    'delay-before': Case(
        'delay(steps=2) | mean() | sgd(0.1)',
        lambda: [numpy_training.Delay(2), numpy_training.Mean(numpy_training.Exact()), numpy_training.Sgd(0.1)],
        NETWORK,
    ),
    'local-sgd': Case(
        'sgd(0.1, momentum=0.9) | average(every=3)',
        lambda: [numpy_training.Sgd(0.1, 0.9), numpy_training.Average(3, numpy_training.Exact())],
        NETWORK,
        local=True,
    ),
    'local-adamw': Case(
        'adamw(learning_rate=0.03, weight_decay=0.1) | average(every=4)',
        lambda: [numpy_training.AdamW(0.03, 0.1), numpy_training.Average(4, numpy_training.Exact())],
        NETWORK,
        local=True,
        weighted=True,
    ),
    'int8': Case(
        "mean(codec=int8(block=16), exchange='two_phases') | sgd(0.1)",
        lambda: [numpy_training.Mean(int8_mean(16)), numpy_training.Sgd(0.1)],
        PLANE,
    ),
    'int8-feedback': Case(
        "mean(codec=int8(block=4), exchange='two_phases', feedback=True) | sgd(0.1, momentum=0.5)",
        lambda: [numpy_training.Mean(int8_mean(4, feedback=True)), numpy_training.Sgd(0.1, 0.5)],
        PLANE,
        everywhere=True,
    ),
    'int8-weighted-delayed': Case(
        "mean(codec=int8(block=4), exchange='two_phases', feedback=True) | delay(steps=2) | sgd(0.1)",
        lambda: [numpy_training.Mean(int8_mean(4, feedback=True)), numpy_training.Delay(2), numpy_training.Sgd(0.1)],
        PLANE,
        weighted=True,
    ),
    'local-int8': Case(
        "sgd(0.1) | average(every=3, codec=int8(block=4), exchange='two_phases')",
        lambda: [numpy_training.Sgd(0.1), numpy_training.Average(3, int8_mean(4))],
        PLANE,
        local=True,
    ),
    'local-int8-feedback': Case(
        'adamw(0.1, b2=0.9, weight_decay=0.1)'
        " | average(every=2, codec=int8(block=16), exchange='two_phases', feedback=True)",
        lambda: [numpy_training.AdamW(0.1, 0.1, b2=0.9), numpy_training.Average(2, int8_mean(16, feedback=True))],
        PLANE,
        local=True,
        everywhere=True,
    ),
}
QUICK = ('sgd', 'int8-feedback', 'local-sgd')
SETUPS = [
    pytest.param(
        name, place, count, id=f'{name}-{place}-{count}', marks=[pytest.mark.slow] * (name not in QUICK or count != 3)
    )
    for name, case in CASES.items()
    for place in PLACES
    for count in WORKERS
    if case.everywhere or (place, count) in {('simulated', 3), ('mesh', 8)}
]


class ReferenceRun(NamedTuple):
    """A run of the reference.

    Attributes:
        start: the initial parameters.
        batches: one for each step.
        trajectory: parameters, losses and counts of all workers.
        residual: the residuals [W, n] after the last step; None without feedback.
        margin: the smallest distance of an entry from one with another code.
    """

    start: dict[str, np.ndarray]
    batches: list[dict[str, np.ndarray]]
    trajectory: numpy_training.Trajectory
    residual: np.ndarray | None
    margin: float


def reference_run(case: Case, count: int, seed: int) -> ReferenceRun:
    """The reference on random data of this seed: numbers that float32 represents exactly, so that both start alike."""
    start, batches, rng = normal_data(case.model, seed)
    for step, batch in enumerate(batches if case.weighted else []):
        batch['weight'] = rng.choice([0.0, 0.5, 1.0, 3.0], EXAMPLES)
        if count > 1 and not case.coded:
            numpy_training.examples_of(step % count, count, batch)['weight'][:] = 0
    reference = case.reference()
    means = (each for each in reference if isinstance(each, numpy_training.Mean | numpy_training.Average))
    (exchange,) = (each.exchange for each in means)
    trajectory = numpy_training.train(case.model, numpy_training.join(start), reference, batches, count)
    if isinstance(exchange, numpy_training.TwoPhases):
        residual = exchange.residual if exchange.feedback else None
        return ReferenceRun(start, batches, trajectory, residual, exchange.codec.margin)
    return ReferenceRun(start, batches, trajectory, None, np.inf)


@cache
def unambiguous_run(name: str, count: int) -> ReferenceRun:
    """Of a few runs, the one whose entries stay farthest from the edges between codes."""
    seeds = range(16 if CASES[name].coded else 1)
    return max((reference_run(CASES[name], count, seed) for seed in seeds), key=lambda run: run.margin)


def residuals(state: State, layout: State, count: int) -> np.ndarray:
    """The residuals of the one transformation that has them, [W, n]."""
    parts = zip(state.opt_state, layout.opt_state, strict=True)
    ((part, varies),) = [pair for pair in parts if isinstance(pair[0], MeanState | PeriodicState)]
    return rows(part.compression.residual, varies.compression.residual, count)


@pytest.mark.parametrize('name, place, count', SETUPS)
def test_matches_the_reference(name: str, place: str, count: int) -> None:
    case, run = CASES[name], unambiguous_run(name, count)
    assert run.margin > EDGE
    dtype, close = (np.float32, 1e-5) if case.coded else (np.float64, 1e-10)
    with jax.enable_x64(not case.coded):
        start, *batches = jax.tree.map(lambda x: x.astype(dtype), [run.start, *run.batches])
        loss, update = LOSSES[case.model.loss], line.build(case.line)
        program = make_step(loss, lambda key: start, update, batches[0], PLACES[place](count))
        assert set(jax.tree.leaves(program.layout.params)) == {case.local}
        state = program.init(jax.random.key(0))
        for step, batch in enumerate(batches):
            state, metrics = program.step(state, batch)
            params = rows(state.params, program.layout.params, count)
            np.testing.assert_allclose(params, run.trajectory.params[step], close, close, err_msg=f'step {step}')
            np.testing.assert_allclose(metrics['loss'], run.trajectory.losses[step], close, close)
            np.testing.assert_allclose(metrics['count'], run.trajectory.counts[step], 0, 0)
    if run.residual is not None:
        # The error of the second message counts W-fold in a residual, and so do its rounding errors.
        np.testing.assert_allclose(residuals(state, program.layout, count), run.residual, 0, count * close)


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'delay-after'])
def test_the_references_workers_together_train_on_the_whole_batch(name: str) -> None:
    case, run = CASES[name], unambiguous_run(name, 8)
    start = numpy_training.join(run.start)
    single = numpy_training.train(case.model, start, case.reference(), run.batches, 1).params
    np.testing.assert_allclose(run.trajectory.params, np.tile(single, (1, 8, 1)), 1e-10)


def test_the_references_feedback_conserves_the_sum() -> None:
    exchange, vectors = int8_mean(4, feedback=True), np.random.default_rng(0).normal(size=(STEPS, 3, 18))
    sent = np.sum([exchange.mean(each) for each in vectors], axis=0)
    assert np.abs(sent - vectors.mean(1).sum(0)).max() > 1e-3
    np.testing.assert_allclose(sent + np.mean(exchange.residual, 0), vectors.mean(1).sum(0), 0, 1e-12)
