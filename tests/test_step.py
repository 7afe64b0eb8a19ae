"""The step against NumPy: exact means, accumulation, half precision, one compile, donation, and what is told of bad input."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from step_toys import (
    INT8,
    LOCAL,
    LOCAL_INT8,
    MEAN,
    NOISE,
    PLACES,
    ROWS,
    SGD,
    SHARED,
    batches,
    descend,
    gradient,
    host,
    init,
    loss,
    place,
    program,
    run,
    sent,
    shard,
    start,
    with_nan,
)

from jaxdist import mesh
from jaxdist.line import build
from jaxdist.step import State, check_batch, make_step, means, shared_params
from jaxdist.workers import Program

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def assert_close(got: Any, want: Any, **tolerance: float) -> None:
    jax.tree.map(functools.partial(close, **tolerance), got, want)


def descended(data: list[Any], params: Any) -> Any:
    """Gradient descent on whole batches, in NumPy."""
    for batch in data:
        params = descend(params, gradient(params, batch))
    return params


# The gradient of the global mean.


@pytest.mark.parametrize('where, count', [('simulated', n) for n in (1, 3, 5, 8)] + [('mesh', n) for n in (1, 3, 8)])
def test_a_mean_is_gradient_descent_on_the_whole_batch(where: str, count: int) -> None:
    made, data = program(MEAN, where, count), batches(3)
    state, metrics = run(made, data)
    assert_close(host(state.params), descended(data, host(start(made).params)))
    assert (int(state.step), metrics['count'].tolist()) == (3, [ROWS / count] * count)


def test_sixty_four_simulated_workers() -> None:
    made, data = program(MEAN, 'simulated', 64, rows=128), batches(3, rows=128)
    state, metrics = run(made, data)
    assert_close(host(state.params), descended(data, host(start(made).params)))
    assert metrics['loss'].shape == (64,)


@pytest.mark.parametrize('where', PLACES)
def test_adam_behind_a_mean_is_adam_on_the_whole_batch(where: str) -> None:
    made, data = program('mean() | adamw(learning_rate=0.01)', where), batches(4)
    update = optax.adamw(0.01)
    params = host(start(made).params)
    moments = update.init(params)
    for batch in data:
        grads = jax.tree.map(jnp.float32, gradient(host(params), batch))
        change, moments = update.update(grads, moments, params)
        params = optax.apply_updates(params, change)
    assert_close(host(run(made, data)[0].params), host(params))


def test_local_steps_and_meetings_are_those_of_numpy() -> None:
    for where in PLACES:
        made, data = program(LOCAL, where), batches(5)
        rows = [host(start(made).params) for _ in range(4)]
        first = jax.tree.map(lambda x: x[0], rows[0])
        rows = [first] * 4
        for t, batch in enumerate(data, 1):
            rows = [descend(p, gradient(p, shard(batch, 4, i))) for i, p in enumerate(rows)]
            if t % 2 == 0:
                rows = [jax.tree.map(lambda *x: np.mean(x, 0), *rows)] * 4
        want = jax.tree.map(lambda *x: np.stack(x), *rows)
        assert_close(host(run(made, data)[0].params), want)


EACH = [(line, 4) for line in (*SHARED, LOCAL, LOCAL_INT8)] + [(INT8, 1), (LOCAL_INT8, 3), (NOISE, 5)]


@pytest.mark.parametrize('line, count', EACH)
def test_simulated_workers_are_those_of_a_mesh(line: str, count: int) -> None:
    data = batches(4)
    simulated, sums = run(program(line, 'simulated', count), data)
    placed, other_sums = run(program(line, 'mesh', count), data)
    # Rounding to 1 / 127 of a block's largest may fall to the other side.
    assert_close(host(simulated), host(placed), rtol=1e-4, atol=2e-3 if 'int8' in line else 1e-5)
    assert_close(host(sums), host(other_sums), rtol=1e-2 if 'int8' in line else 1e-4)


@pytest.mark.xfail(strict=True, raises=TypeError, reason='see wire.exchange of what all share, simulated')
def test_a_codec_for_what_all_share_already() -> None:
    run(program(f'mean() | mean(codec=int8()) | {SGD}', 'simulated'), batches(1))


# Uneven shards.

UNEVEN = np.repeat(np.float32([1, 0, 0.25, 3]), ROWS // 4) * (np.arange(ROWS) % 7 > 1)


@pytest.mark.parametrize('where', PLACES)
def test_uneven_shards_give_the_gradient_of_the_global_mean(where: str) -> None:
    """Counts differ, and the second worker has no example at all."""
    made, data = program(MEAN, where, weighted=True), batches(3, weight=UNEVEN)
    state, metrics = run(made, data)
    assert_close(host(state.params), descended(data, host(start(made).params)))
    assert_close(metrics['count'], UNEVEN.reshape(4, -1).sum(1))
    assert means(metrics)['skipped'] == 0


def test_no_example_anywhere_moves_nothing() -> None:
    made, (batch,) = program(MEAN, 'mesh', weighted=True), batches(1, weight=np.zeros(ROWS))
    before = host(start(made).params)
    state, metrics = run(made, [batch])
    jax.tree.map(np.testing.assert_array_equal, host(state.params), before)
    assert np.isnan(means(metrics)['loss'])


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('weighted', [False, True])
def test_accumulation_is_the_whole_batch(where: str, weighted: bool) -> None:
    weight = UNEVEN if weighted else None
    options = {'where': where, 'weighted': weighted}
    data = batches(3, weight=weight)
    parts, sums = run(program(MEAN, **options, accumulate=4), data)
    whole, whole_sums = run(program(MEAN, **options), data)
    assert_close(host(parts.params), host(whole.params), rtol=1e-6, atol=1e-7)
    assert_close(host(sums), host(whole_sums), rtol=1e-6)


@pytest.mark.xfail(strict=True, reason='delay keeps gradients and not their weights: mean gives them those of now')
def test_delayed_gradients_keep_their_weights() -> None:
    made = program(f'delay(steps=1) | mean() | {SGD}', weighted=True)
    first, second = batches(1, weight=UNEVEN) + batches(1, weight=UNEVEN[::-1], seed=1)
    params = host(start(made).params)
    state, _ = run(made, [first, second])
    assert_close(host(state.params), descend(params, gradient(params, first)))


def collectives(made: Program, batch: Any) -> list[str]:
    """Those of the compiled step, by the instructions' names."""
    text = made.step.lower(made.state, batch).compile().as_text()
    return re.findall(r' (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(', text)


def test_even_batches_send_their_gradients_and_nothing_else() -> None:
    (even,), (uneven,) = batches(1), batches(1, weight=UNEVEN)
    bare = program(MEAN, 'mesh', guard=False)
    assert collectives(bare, even) == ['all-reduce']
    size = lambda made, batch: sum(e.sent for e in sent(made, batch, place('mesh', 4)))  # noqa: E731
    four_floats, one_float = 2 * 3 / 4 * 16, 2 * 3 / 4 * 4
    assert size(bare, even) == four_floats
    assert size(program(MEAN, 'mesh'), even) == four_floats + one_float  # the guard's vote
    assert size(program(MEAN, 'mesh', guard=False, weighted=True), uneven) == four_floats + one_float  # the counts


# Half precision.


@pytest.mark.parametrize('where', PLACES)
def test_the_loss_computes_in_bfloat16_and_all_else_in_float32(where: str) -> None:
    seen = []

    def half(params: Any, batch: Any, key: Any) -> Any:
        seen.extend(p.dtype for p in jax.tree.leaves(params))
        return loss(params, batch, key)

    (batch,) = batches(1)
    made = make_step(half, init, build(INT8), batch, place(where, 4), compute=jnp.bfloat16, accumulate=2)
    state, _ = run(made, [batch])
    # The test of the loss's form sees float32: it runs before anything is cast.
    assert set(seen[2:]) == {jnp.dtype('bfloat16')}
    kept = [state.params, state.opt_state[0].memory.residual, state.opt_state[1][0].mu, state.opt_state[1][0].nu]
    assert {x.dtype for x in jax.tree.leaves(kept)} == {np.dtype('float32')}


def test_half_precision_rounds_the_parameters_that_the_loss_sees() -> None:
    (batch,) = batches(1)
    made = program(MEAN, compute=jnp.bfloat16)
    before = host(start(made).params)
    rounded = jax.tree.map(lambda p: np.float32(jnp.bfloat16(p)), before)
    want = descend(before, gradient(rounded, batch))  # and the gradient moves the float32 ones
    moved, exact = host(run(made, [batch])[0].params), descend(before, gradient(before, batch))
    gap = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))  # noqa: E731
    assert gap(moved, want) < 0.01 * gap(before, exact)
    assert np.any(moved['w'] != np.float32(jnp.bfloat16(moved['w'])))


# One program.


@pytest.fixture
def compiles() -> Iterator[list[str]]:
    """What was compiled since the test began."""
    seen: list[str] = []

    def listen(event: str, seconds: float, **more: Any) -> None:
        if event.endswith('backend_compile_duration'):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize('line, where', [(INT8, 'simulated'), (INT8, 'mesh'), (LOCAL_INT8, 'mesh')])
def test_one_compile_donated_and_nothing_fetched(line: str, where: str, compiles: list[str]) -> None:
    (batch,) = batches(1)
    made = make_step(loss, init, build(line), batch, place(where, 4))
    mesh_of = place(where, 4).mesh
    batch = jax.device_put(batch, mesh_of and NamedSharding(mesh_of, jax.P('workers')))
    state = made.init(jax.random.key(0))
    compiles.clear()
    with jax.transfer_guard('disallow'):
        for _ in range(4):
            old, (state, _) = state, made.step(state, batch)
            assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert len(compiles) == 1


@pytest.mark.parametrize('where', PLACES)
def test_a_key_is_not_donated_away(where: str) -> None:
    made, key = program(MEAN, where), jax.random.key(7)
    made.step(made.init(key), batches(1)[0])
    assert int(made.init(key).step) == 0


@pytest.mark.xfail(strict=True, reason='the state keeps the weak type that init gave a parameter, and loses it in the step')
def test_one_compile_for_parameters_made_from_python_numbers(compiles: list[str]) -> None:
    (batch,) = batches(1)
    weak = lambda key: {'w': jnp.zeros(3), 'b': jnp.asarray(0.0)}  # noqa: E731
    made = make_step(loss, weak, build(MEAN), batch, place('simulated', 4))
    state = made.init(jax.random.key(0))
    compiles.clear()
    run(made, [batch, batch], state)
    assert len(compiles) == 1


# Randomness.


def drawn(p: Any, batch: Any, key: jax.Array) -> Any:
    """A loss whose gradient is a random number, drawn from the key."""
    return {'loss': p * jax.random.normal(key), 'draw': jax.random.normal(key)}, jnp.float32(len(batch['x']))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_every_worker_step_and_seed_draws_anew(accumulate: int) -> None:
    batch = {'x': np.zeros(8, np.float32)}
    draws = {}
    for where in PLACES:
        made = make_step(
            drawn, lambda key: jnp.zeros(()), build(MEAN), batch, place(where, 4), accumulate=accumulate
        )
        rows = []
        for seed in (0, 1):
            state = made.init(jax.random.key(seed))
            for _ in range(2):
                state, metrics = made.step(state, batch)
                rows.append(np.array(metrics['draw']))
        draws[where] = np.stack(rows)
        assert len(np.unique(draws[where])) == 16
    np.testing.assert_array_equal(draws['simulated'], draws['mesh'])


# What is told of bad input.


def made_with(bad: Callable[..., Any]) -> Program:
    return make_step(bad, init, build(MEAN), batches(1)[0], place('simulated', 4))


@pytest.mark.parametrize(
    'returned',
    [
        lambda s: s,
        lambda s: (s, 1.0),
        lambda s: ({'los': s}, 1.0),
        lambda s: ({'loss': s}, 1.0, {}),
        lambda s: [{'loss': s}, 1.0],
        lambda s: None,
    ],
)
def test_a_loss_that_returns_something_else(returned: Any) -> None:
    with pytest.raises(ValueError, match=r"must return \(sums, count\) with sums a dict that holds 'loss'"):
        made_with(lambda p, b, key: returned(loss(p, b, key)[0]['loss']))


def test_sums_and_counts_are_scalars() -> None:
    with pytest.raises(ValueError, match=r"must return scalars, .*'loss' has shape \(60,\)"):
        made_with(lambda p, b, key: ({'loss': b['y'] * p['b']}, 60))
    with pytest.raises(ValueError, match=r"'seen' has shape \(3,\)"):
        made_with(lambda p, b, key: ({'loss': p['b'], 'seen': p['w']}, 60))
    with pytest.raises(ValueError, match=r"'count' has shape \(60,\)"):
        made_with(lambda p, b, key: ({'loss': p['b']}, b['y']))


@pytest.mark.xfail(strict=True, reason='the step writes its own over them')
@pytest.mark.parametrize('name', ['count', 'skipped'])
def test_sums_under_the_names_of_the_steps_own_metrics(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        made_with(lambda p, b, key: ({**loss(p, b, key)[0], name: jnp.float32(7)}, 60))


@pytest.mark.parametrize(
    'batch, text',
    [
        ({'x': (8, 3), 'y': (9,)}, r"same number of rows, 1 or more; here they have \{'x': 8, 'y': 9\}"),
        ({'x': (0, 3), 'y': (0,)}, r"1 or more; here they have \{'x': 0, 'y': 0\}"),
        ({'x': (8, 3), 'y': ()}, r"here they have \{'x': 8, 'y': 0\}"),
        ({}, r'here they have \{\}'),
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
    with pytest.raises(ValueError, match='20 examples .* 4 workers in 3 parts each; 12 or 24 would do'):
        make_step(loss, init, build(MEAN), batch, place('mesh', 4), accumulate=3)
    for parts in (0, -1):
        with pytest.raises(ValueError, match=f'accumulate={parts} must be 1 or more'):
            check_batch(batch, 4, parts)


# Reading metrics and parameters.


@pytest.mark.parametrize('where', PLACES)
def test_means_are_those_of_all_examples(where: str) -> None:
    made, (batch,) = program(MEAN, where, weighted=True), batches(1, weight=UNEVEN)
    params = host(start(made).params)
    _, metrics = run(made, [batch])
    errors = batch['x'] @ params['w'] + params['b'] - batch['y']
    want = (UNEVEN * 0.5 * errors**2).sum() / UNEVEN.sum()
    assert means(metrics) == {'loss': pytest.approx(want, rel=1e-5), 'skipped': 0}
    assert all(x.shape == (4,) for x in metrics.values())


def test_one_set_of_parameters() -> None:
    local, shared = program(LOCAL), program(MEAN)
    state, _ = run(local, batches(3))
    got = jax.jit(lambda s: shared_params(s, local.layout))(state)
    assert_close(host(got), jax.tree.map(lambda p: p.mean(0), host(state.params)))
    state, _ = run(shared, batches(2))
    assert shared_params(state, shared.layout) == state.params


def test_the_state_has_no_hidden_part() -> None:
    assert State._fields == ('step', 'params', 'opt_state', 'key', 'skipped')
    made, batch = program(MEAN), with_nan(batches(1)[0], 4, 1)
    a, b = (run(made, [batch])[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


def test_a_mesh_of_one_device_and_a_model_of_one_array() -> None:
    batch = {'x': np.arange(6, dtype=np.float32)}
    square = lambda p, b, key: ({'loss': jnp.sum((p - b['x']) ** 2) / 2}, len(b['x']))  # noqa: E731
    where = mesh.make({'workers': 1})
    made = make_step(square, lambda key: jnp.zeros(()), build('mean() | sgd(1.0)'), batch, place('mesh', 1))
    state, _ = run(made, [batch])
    assert float(state.params) == 2.5
    assert state.params.sharding.device_set == set(where.devices.flat)
