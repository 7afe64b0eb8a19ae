"""Lines with a rule of a server in experiments: identities with other lines, resumed runs, records, and mistakes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_fixtures import Jaxdist, finish, saved, small, train_until

from jaxdist import line
from jaxdist.clock.link import Link
from jaxdist.clock.rules import k_async
from jaxdist.clock.settings import Clock
from jaxdist.core.errors import InputError
from jaxdist.core.workers import simulated
from jaxdist.data import Digits
from jaxdist.training.arrival_table import ArrivalTable
from jaxdist.training.arrivals import make_arrivals
from jaxdist.training.experiment import ExperimentError, Mesh
from jaxdist.training.run_folder import read_records
from jaxdist.training.train import Training, first_state, prepare, train

CLOCK = Clock('lognormal(mean=1.0, sigma=0.5)')
EQUAL = Clock('constant(mean=1.0)')


def prepared(update: str, clock: Clock = CLOCK, workers: int = 4, **changes: Any) -> Training:
    return prepare(small(update, workers, simulate=True, clock=clock, **changes))


def parameters(training: Training, steps: int) -> list[Any]:
    """The parameters after each step."""
    found = []
    shorter = training._replace(experiment=dataclasses.replace(training.experiment, steps=steps))
    for each in train(shorter, first_state(training)):
        found.append(jax.device_get(training.params(each.state)))
    return found


def near(one: Any, two: Any, tolerance: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10), one, two)


@pytest.mark.parametrize('server', ['adam(0.01)', 'sgd(0.1, momentum=0.9)'])
def test_who_waits_for_all_is_synchronous(server: str) -> None:
    ours = parameters(prepared(f'k_sync(k=4) | {server}'), 5)
    for step, theirs in enumerate(parameters(prepared(f'mean() | {server}', Clock()), 5)):
        near(ours[step], theirs)


def test_a_server_that_adds_in_lockstep_is_synchronous() -> None:
    # SSP(0): four updates, one for each message, all taken of the same version.
    ours = parameters(prepared('ssp(bound=0) | sgd(0.025)'), 5)
    near(ours[-1], parameters(prepared('mean() | sgd(0.1)', Clock()), 5)[-1], 1e-4)


@pytest.mark.parametrize('rule', ['k_async(k=1)', 'ssp(bound=3)', 'ringmaster(limit=2)', 'quorum(k=1)'])
def test_of_one_worker_every_rule_is_plain_training(rule: str) -> None:
    ours = parameters(prepared(f'{rule} | adam(0.01)', workers=1), 5)
    near(ours[-1], parameters(prepared('mean() | adam(0.01)', Clock(), workers=1), 5)[-1])


def test_at_equal_speeds_asynchronous_is_delayed_by_all_others() -> None:
    """One worker that takes their batches in turn, with a delay of W - 1 steps, is the same W - 1 steps later."""
    w, steps, rows = 4, 5, 20
    loss = lambda p, b, key: ({'loss': jnp.sum((b['x'] @ p - b['y']) ** 2)}, jnp.float32(b['y'].size))  # noqa: E731
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, 2, 3), (rows, 2)))
    program = make_arrivals(loss, lambda key: jnp.ones(3), line.split_rule('k_async(k=1) | sgd(0.05)'), simulated(w))
    table = ArrivalTable(k_async(k=1), EQUAL, w, size=12)
    state = program.init(jax.random.key(0))
    batch = table.batches(lambda seed, turn, size, workers: {'x': x.reshape(5, 8, 3)[turn], 'y': y.reshape(5, 8)[turn]})
    for step in range(steps):
        state, _ = program.step(state, batch(0, step, 8, w))
    update = optax.chain(line.build(f'delay(steps={w - 1})'), optax.sgd(0.05))
    params, memory = jnp.ones(3), update.init(jnp.ones(3))
    gradient = jax.jit(jax.grad(lambda p, x, y: jnp.sum((x @ p - y) ** 2) / 2))
    for row in range(rows + w - 1):
        g = gradient(params, x[min(row, rows - 1)], y[min(row, rows - 1)])
        updates, memory = update.update(g, memory, params)
        params = optax.apply_updates(params, updates)
    near(state.params, params, 1e-6)


def test_what_workers_do_has_a_state_for_each() -> None:
    ours = parameters(prepared('trace(decay=0.5) | k_sync(k=4) | sgd(0.1)'), 5)
    near(ours[-1], parameters(prepared('mean() | sgd(0.1, momentum=0.5)', Clock()), 5)[-1])


def test_a_message_that_is_not_finite_counts_nothing() -> None:
    @dataclasses.dataclass(frozen=True)
    class Bad(Digits):
        def load(self) -> Any:
            data = super().load()

            def batch(seed: int, step: int, size: int, workers: int) -> Any:
                clean = data.batch(seed, step, size, workers)
                x = clean['x'].copy()
                x[: len(x) // workers] = np.nan  # worker 0's
                return {**clean, 'x': x}

            return data._replace(batch=batch)

    training = prepared('k_async(k=1) | sgd(0.1)', EQUAL, data=Bad())
    for each in train(training, first_state(training)):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(each.state.params)))
    assert int(each.state.skipped) == training.experiment.steps  # one of four messages in each step


@pytest.mark.parametrize('update', ['k_async(k=3) | adam(0.01)', 'trace(decay=0.5) | ringmaster(limit=2) | sgd(0.1)'])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(update: str, tmp_path: Path) -> None:
    experiment = small(update, 4, simulate=True, clock=CLOCK)
    finish(experiment, tmp_path / 'whole')
    train_until(4, experiment, tmp_path / 'resumed')
    finish(experiment, tmp_path / 'resumed')
    (step, one), (_, two) = saved(experiment, tmp_path / 'whole'), saved(experiment, tmp_path / 'resumed')
    assert step == experiment.steps
    for a, b in zip(one, two, strict=True):
        assert a.tobytes() == b.tobytes()
    table = prepare(experiment).arrivals
    assert table is not None
    records = [record for record in read_records(tmp_path / 'resumed') if 'loss' in record]
    assert [record['simulated_seconds'] for record in records] == table.ends(7).tolist()
    assert [record['sent'] for record in records] == [2 * 4 * 610 * step for step in range(1, 8)]


def test_a_run_goes_on_with_as_many_workers(tmp_path: Path) -> None:
    experiment = small('k_async(k=1) | sgd(0.1)', 4, simulate=True, clock=CLOCK)
    train_until(4, experiment, tmp_path)
    with pytest.raises(ExperimentError, match=r'is of 4 workers: go on with --mesh\.workers 4, not with 2'):
        finish(dataclasses.replace(experiment, mesh=Mesh(workers=2, simulate=True)), tmp_path)


def test_messages_take_the_servers_link_one_after_the_other() -> None:
    # All are ready at 1 s; each takes 0.5 s of the link with its answer, after 0.25 s on the way.
    clock = Clock('constant(mean=1.0)', link=Link(latency=0.25, bandwidth=32.0))
    rows = ArrivalTable(k_async(k=1), clock, workers=3, size=8).until(2)
    assert [row.time for row in rows] == [1.75, 2.25, 2.75, 3.5, 4.0, 4.5]


def test_the_server_sets_the_pace_of_many_workers() -> None:
    table = ArrivalTable(k_async(k=1), Clock(CLOCK.compute, link=Link(bandwidth=32.0)), workers=16, size=8)
    assert table.summary(50)['seconds_per_step'] == pytest.approx(16 * 0.5, rel=0.05)


def test_a_plan_shows_them_and_draws_them(jaxdist: Jaxdist) -> None:
    words = ['plan', 'small.py', '--simulate', '--clock.compute', 'constant(mean=0.5)', '--clock.slow', '3']
    code, out, err = jaxdist(*words, '--update', 'k_async(k=1) | sgd(0.1)', '--gantt', 'gantt.svg')
    assert (code, err) == (0, '')
    assert 'arrivals    625 ms a step, 90% of it useful; staleness 2.44, 9 at most' in out
    assert 'push' in out
    assert Path('gantt.svg').exists()


@pytest.mark.parametrize(
    'update, changes, error',
    [
        (
            'k_async(k=1) | sgd(0.1)',
            {'clock': Clock()},
            'by a clock, and there is none: give one',
        ),
        ('k_async(k=1) | sgd(0.1)', {'mesh': Mesh(workers=4)}, 'does not go with a mesh: .* give --simulate'),
        ('k_async(k=1) | sgd(0.1)', {'spike': 3.0}, 'does not go with spike'),
        ('k_async(k=5) | sgd(0.1)', {}, 'k=5 messages never come from 4 workers that wait: take at most 4'),
        ('mean() | k_async(k=1) | sgd(0.1)', {}, 'in mean all workers communicate, and by k_async each sends'),
        ('sgd(0.1) | ssp(bound=1) | k_async(k=1)', {}, 'a line has one rule of a server, and this is one more'),
        ('ssp(bound=-1) | sgd(0.1)', {}, 'bound=-1 must be 0 or more'),
    ],
)
def test_what_does_not_go_together_is_refused(update: str, changes: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        prepare(small(update, **{'workers': 4, 'simulate': True, 'clock': CLOCK, **changes}))


def test_a_line_alone_has_no_arrivals() -> None:
    with pytest.raises(line.LineError, match=r'messages arrive by a clock: train .* in an experiment'):
        line.build('k_async(k=1) | sgd(0.1)')
