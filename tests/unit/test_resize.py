"""A run resumes with another number of workers, and the total of residuals and queues is conserved."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_fixtures import linear_loss, random_gradients

from jaxdist.core import mesh, workers
from jaxdist.data import Digits
from jaxdist.line import build
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, Mesh
from jaxdist.training.resize import resized, saved_by
from jaxdist.training.run import run
from jaxdist.training.step import make_step

SLOW = pytest.mark.slow
SHAPES = {'b': (5,), 'w': (12, 10)}
LINES = {
    'ef14': 'mean(codec=sign(block=8), feedback=True) | sgd(1.0)',
    'ef21': "mean(codec=top_k(k=2, block=8), feedback='ef21') | sgd(1.0)",
    'low rank': 'mean(codec=power_sgd(rank=1), feedback=True) | sgd(1.0)',
    'queue': 'delay(steps=2) | mean() | sgd(1.0)',
    'local': 'adam(0.1) | average(every=3, codec=int4(block=8), feedback=True)',
}


def program(line: str, count: int, mode: str) -> Any:
    place = workers.simulated(count) if mode == 'simulated' else workers.on_mesh(mesh.make({'workers': count}))
    batch = random_gradients(1, count, SHAPES)[0]
    start = lambda key: {name: jnp.zeros(shape) for name, shape in SHAPES.items()}  # noqa: E731
    return make_step(linear_loss, start, build(line), batch, place)


def after(program: Any, count: int, steps: int, state: Any = None, seed: int = 0) -> tuple[Any, Any]:
    """The state after some steps, and the sum over steps of the mean gradient."""
    state = program.init(jax.random.key(0)) if state is None else state
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for batch in random_gradients(steps, count, SHAPES, seed):
        state, _ = program.step(state, batch)
        total = {name: x + batch[name].astype(np.float64).mean(0) for name, x in total.items()}
    return state, total


def not_applied(name: str, state: Any) -> Any:
    """The part of the sum of mean gradients that is in the queue or the residual, by parameter."""
    if name == 'queue':
        return {key: np.asarray(q, np.float64).mean(0).sum(0) for key, q in state.slots.items()}
    residual = state.compression.residual
    return {key: 0.0 if residual[key] is None else np.asarray(residual[key], np.float64).mean(0) for key in SHAPES}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ef14', pytest.param('low rank', marks=SLOW), pytest.param('queue', marks=SLOW)])
@pytest.mark.parametrize(
    'counts, mode',
    [
        pytest.param((4, 2), 'mesh', marks=SLOW),
        ((4, 3), 'mesh'),
        pytest.param((2, 5), 'simulated', marks=SLOW),
        pytest.param((8, 1), 'mesh', marks=SLOW),
    ],
)
def test_the_sum_of_gradients_is_applied_or_in_the_state(name: str, counts: tuple[int, int], mode: str) -> None:
    old, new = (program(LINES[name], count, mode) for count in counts)
    before, first = after(old, counts[0], 3)
    saved = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), before, saved_by(old.state, new))
    state, second = after(new, counts[1], 3, resized(saved, new), seed=1)
    rest = not_applied(name, state.opt_state[0])
    for key, total in {key: first[key] + second[key] for key in first}.items():
        np.testing.assert_allclose(rest[key] - np.asarray(state.params[key], np.float64), total, 0, 2e-5)


@SLOW
@pytest.mark.parametrize('count', [2, 3])
def test_the_mean_of_ef21_residuals_is_its_estimate(count: int) -> None:
    old, new = (program(LINES['ef21'], n, 'simulated') for n in (4, count))
    before, _ = after(old, 4, 3)
    state, _ = after(new, count, 2, resized(before, new), seed=1)
    compression = state.opt_state[0].compression
    for key in SHAPES:
        np.testing.assert_allclose(np.mean(compression.residual[key], 0), compression.estimate[key], 0, 1e-5)


def test_local_training_is_synchronised() -> None:
    old, new = (program(LINES['local'], n, 'simulated') for n in (4, 2))
    before, _ = after(old, 4, 4)
    mean = {key: np.asarray(p, np.float64).mean(0) for key, p in before.params.items()}
    moments = {key: np.asarray(m, np.float64).mean(0) for key, m in before.opt_state[0][0].mu.items()}
    state = resized(before, new)
    for key in SHAPES:
        np.testing.assert_allclose(state.params[key], np.stack([mean[key]] * 2), 0, 1e-6)
        np.testing.assert_allclose(state.opt_state[0][0].mu[key], np.stack([moments[key]] * 2), 0, 1e-6)
    assert int(state.opt_state[0][0].count) == 4


@SLOW
@pytest.mark.parametrize(
    'update, averages',
    [
        ('mean(codec=int4(), feedback=True) | sgd(0.1)', '0/compression/residual/'),
        ('parameter_server(optimizer=adam(0.01), push=int4(), feedback=True)', 'residual/'),
    ],
)
def test_a_run_resumes_with_fewer_and_with_more_workers(update: str, averages: str, tmp_path: Path) -> None:
    """The bytes sent add up over the run's starts."""
    experiment = Experiment(
        update=update,
        model=Perceptron(hidden=(4,)),
        data=Digits(),
        batch=24,
        log_every=5,
    )
    sent, expected, before = 0, 0.0, 4
    for steps, devices in ((5, Mesh(4)), (10, Mesh(2)), (15, Mesh(6, simulate=True))):
        ready, *events = run(dataclasses.replace(experiment, steps=steps, mesh=devices), tmp_path / 'run')
        assert ready.value.step == steps - 5
        if devices.workers != before:
            assert ready.value.resized[0] == before
            averaged, split = ready.value.resized[1:]
            assert averaged[0].startswith(f'opt_state/{averages}')
            assert {path.split('/')[1] for path in split} == ({'served', 'optimizer'} if 'server' in update else set())
        before = devices.workers
        expected += 5 * float(ready.value.sent)
        (record,) = [event.value for event in events if event.kind == 'trained']
        assert record['sent'] == pytest.approx(expected, abs=1)
        assert record['sent'] > sent
        sent = record['sent']
