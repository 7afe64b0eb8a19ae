"""The training step as a program: one compilation, donation, random keys, messages for bad input, metrics."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from step_fixtures import (
    INT8,
    LOCAL,
    LOCAL_INT8,
    MEAN,
    PLACES,
    UNEVEN,
    batches,
    host,
    init,
    loss,
    make_program,
    place,
    run,
    start,
    with_nan,
)

from jaxdist.core import mesh
from jaxdist.core.program import Program
from jaxdist.line import build
from jaxdist.training.checking import check_batch
from jaxdist.training.metrics import means
from jaxdist.training.step import State, make_step, shared_params

# One program.


@pytest.fixture
def compiles() -> Iterator[list[str]]:
    """The events of compilations since the test began."""
    events: list[str] = []

    def listen(event: str, seconds: float, **more: Any) -> None:
        if event.endswith('backend_compile_duration'):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize('line, where', [(INT8, 'simulated'), (INT8, 'mesh'), (LOCAL_INT8, 'mesh')])
def test_one_compilation_donation_and_no_transfers(line: str, where: str, compiles: list[str]) -> None:
    (batch,) = batches(1)
    program = make_step(loss, init, build(line), batch, place(where, 4))
    mesh_of = place(where, 4).mesh
    batch = jax.device_put(batch, mesh_of and NamedSharding(mesh_of, jax.P('workers')))
    state = program.init(jax.random.key(0))
    compiles.clear()
    with jax.transfer_guard('disallow'):
        for _ in range(4):
            old, (state, _) = state, program.step(state, batch)
            assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert len(compiles) == 1


@pytest.mark.parametrize('where', PLACES)
def test_the_key_is_not_donated(where: str) -> None:
    program, key = make_program(MEAN, where), jax.random.key(7)
    program.step(program.init(key), batches(1)[0])
    assert int(program.init(key).step) == 0


def test_one_compilation_for_weakly_typed_parameters(compiles: list[str]) -> None:
    (batch,) = batches(1)
    weak = lambda key: {'w': jnp.zeros(3), 'b': jnp.asarray(0.0)}  # noqa: E731
    program = make_step(loss, weak, build(MEAN), batch, place('simulated', 4))
    state = program.init(jax.random.key(0))
    compiles.clear()
    run(program, [batch, batch], state)
    assert len(compiles) == 1


# Randomness.


def drawn(p: Any, batch: Any, key: jax.Array) -> Any:
    """A loss whose gradient is a random number drawn from the key."""
    draw = jax.random.randint(key, (), -2047, 2048).astype(jnp.float32)  # sums of a few, and of squares, are exact
    return {'loss': p * draw, 'draw': draw, 'square': draw**2}, jnp.float32(len(batch['x']))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_keys_differ_between_workers_steps_and_seeds(accumulate: int) -> None:
    batch = {'x': np.zeros(8, np.float32)}
    draws = {}
    for where in PLACES:
        program = make_step(
            drawn, lambda key: jnp.zeros(()), build(MEAN), batch, place(where, 4), accumulate=accumulate
        )
        rows = []
        for seed in (0, 1):
            state = program.init(jax.random.key(seed))
            for _ in range(2):
                state, metrics = program.step(state, batch)
                rows.append(np.array(metrics['draw']))
                if accumulate == 2:  # of equal parts, the square of the sum is twice the sum of squares
                    assert np.all(rows[-1] ** 2 < 1.999 * np.array(metrics['square']))
        draws[where] = np.stack(rows)
        assert len(np.unique(draws[where])) == 16
    np.testing.assert_array_equal(draws['simulated'], draws['mesh'])


# Messages for bad input.


def program_of(bad: Callable[..., Any]) -> Program:
    return make_step(bad, init, build(MEAN), batches(1)[0], place('simulated', 4))


@pytest.mark.parametrize(
    'returned',
    [
        lambda s: s,
        lambda s: (s, 1.0),
        lambda s: ({'los': s}, 1.0),
        lambda s: [{'loss': s}, 1.0],
        lambda s: None,
    ],
)
def test_a_loss_with_a_wrong_result(returned: Any) -> None:
    with pytest.raises(ValueError, match=r"must return \(sums, count\) with sums a dict that holds 'loss'"):
        program_of(lambda p, b, key: returned(loss(p, b, key)[0]['loss']))


def test_sums_and_counts_are_scalars() -> None:
    with pytest.raises(ValueError, match=r"must return scalars, .*'loss' has shape \(60,\)"):
        program_of(lambda p, b, key: ({'loss': b['y'] * p['b']}, 60))
    with pytest.raises(ValueError, match=r"'seen' has shape \(3,\)"):
        program_of(lambda p, b, key: ({'loss': p['b'], 'seen': p['w']}, 60))
    with pytest.raises(ValueError, match=r"'count' has shape \(60,\)"):
        program_of(lambda p, b, key: ({'loss': p['b']}, b['y']))


@pytest.mark.parametrize('name', ['count', 'skipped'])
def test_sums_with_names_of_the_steps_metrics(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        program_of(lambda p, b, key: ({**loss(p, b, key)[0], name: jnp.float32(7)}, 60))


@pytest.mark.parametrize(
    'batch, text',
    [
        ({'x': (8, 3), 'y': (9,)}, r"same number of rows, 1 or more; here they have \{'x': 8, 'y': 9\}"),
        ({'x': (0, 3), 'y': (0,)}, r"1 or more; here they have \{'x': 0, 'y': 0\}"),
        ({'x': (8, 3), 'y': ()}, r"here they have \{'x': 8, 'y': 0\}"),
        ({}, 'a dict without entries'),
        ({'x': (10, 3), 'y': (10,)}, 'a batch of 10 examples cannot be divided among 4 workers; 8 or 12 would do'),
        ({'x': (3, 3), 'y': (3,)}, '3 examples cannot be divided among 4 workers; 4 would do'),
    ],
)
def test_a_batch_that_does_not_fit(batch: Any, text: str) -> None:
    shapes = {name: jax.ShapeDtypeStruct(shape, 'float32') for name, shape in batch.items()}
    with pytest.raises(ValueError, match=text):
        make_step(loss, init, build(MEAN), shapes, place('simulated', 4))


def test_an_accumulation_that_does_not_fit() -> None:
    (batch,) = batches(1, rows=20)
    with pytest.raises(ValueError, match=r'20 examples .* 4 workers in 3 parts each; 12 or 24 would do'):
        make_step(loss, init, build(MEAN), batch, place('mesh', 4), accumulate=3)
    for parts in (0, -1):
        with pytest.raises(ValueError, match=f'accumulate={parts} must be 1 or more'):
            check_batch(batch, 4, parts)


# Reading metrics and parameters.


@pytest.mark.parametrize('where', PLACES)
def test_means_are_over_all_examples(where: str) -> None:
    program, (batch,) = make_program(MEAN, where, weighted=True), batches(1, weight=UNEVEN)
    params = host(start(program).params)
    _, metrics = run(program, [batch])
    errors = batch['x'] @ params['w'] + params['b'] - batch['y']
    expected = (UNEVEN * 0.5 * errors**2).sum() / UNEVEN.sum()
    assert means(metrics) == {'loss': pytest.approx(expected, rel=1e-5), 'skipped': 0}
    assert all(x.shape == (4,) for x in metrics.values())


def test_shared_params_are_the_mean_over_workers() -> None:
    local, replicated = make_program(LOCAL), make_program(MEAN)
    state, _ = run(local, batches(3))
    mean = jax.jit(lambda s: shared_params(s, local.layout))(state)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, host(mean), jax.tree.map(lambda p: p.mean(0), host(state.params)))
    state, _ = run(replicated, batches(2))
    assert shared_params(state, replicated.layout) == state.params


def test_a_run_is_a_function_of_its_state() -> None:
    assert State._fields == ('step', 'params', 'opt_state', 'key', 'skipped', 'objective', 'model')
    program, batch = make_program(MEAN), with_nan(batches(1)[0], 4, 1)
    a, b = (run(program, [batch])[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


def test_a_mesh_of_one_device_and_parameters_of_one_array() -> None:
    batch = {'x': np.arange(6, dtype=np.float32)}
    square = lambda p, b, key: ({'loss': jnp.sum((p - b['x']) ** 2) / 2}, len(b['x']))  # noqa: E731
    one_device = mesh.make({'workers': 1})
    program = make_step(square, lambda key: jnp.zeros(()), build('mean() | sgd(1.0)'), batch, place('mesh', 1))
    state, _ = run(program, [batch])
    assert float(state.params) == 2.5
    assert state.params.sharding.device_set == set(one_device.devices.flat)
