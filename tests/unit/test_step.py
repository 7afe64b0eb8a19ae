"""The step against NumPy: exact means, local steps, uneven shards, accumulation and half precision."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_fixtures import (
    INT8,
    LOCAL,
    LOCAL_INT8,
    MEAN,
    PLACES,
    ROWS,
    SGD,
    SHARED,
    UNEVEN,
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
)

from jaxdist.core.program import Program
from jaxdist.line import build
from jaxdist.training.step import make_step, means

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def assert_close(got: Any, want: Any, **tolerance: float) -> None:
    jax.tree.map(functools.partial(close, **tolerance), got, want)


def descended(data: list[Any], params: Any) -> Any:
    """Gradient descent on whole batches, in NumPy."""
    for batch in data:
        params = descend(params, gradient(params, batch))
    return params


# The gradient of the global mean.


@pytest.mark.parametrize('where, count', [('simulated', n) for n in (1, 5)] + [('mesh', n) for n in (1, 3, 8)])
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


@pytest.mark.parametrize('where, weighted', [('simulated', False), ('mesh', False), ('simulated', True)])
def test_local_steps_and_meetings_are_those_of_numpy(where: str, weighted: bool) -> None:
    """With weights too each takes the gradient of its own mean, and who has no example none."""
    made, data = program(LOCAL, where, weighted=weighted), batches(5, weight=UNEVEN if weighted else None)
    rows = [jax.tree.map(lambda x: x[0], host(start(made).params))] * 4
    for t, batch in enumerate(data, 1):
        rows = [descend(p, gradient(p, shard(batch, 4, i))) for i, p in enumerate(rows)]
        if t % 2 == 0:
            rows = [jax.tree.map(lambda *x: np.mean(x, 0), *rows)] * 4
    want = jax.tree.map(lambda *x: np.stack(x), *rows)
    assert_close(host(run(made, data)[0].params), want)


EACH = [(line, 4) for line in (*SHARED, LOCAL, LOCAL_INT8)] + [(INT8, 1), (LOCAL_INT8, 3)]


@pytest.mark.parametrize(
    'line, count',
    [pytest.param(*each, marks=[pytest.mark.slow] * (each not in ((MEAN, 4), (LOCAL, 4)))) for each in EACH],
)
def test_simulated_workers_are_those_of_a_mesh(line: str, count: int) -> None:
    data = batches(4)
    simulated, sums = run(program(line, 'simulated', count), data)
    placed, other_sums = run(program(line, 'mesh', count), data)
    # Rounding to 1 / 127 of a block's largest may fall to the other side.
    assert_close(host(simulated), host(placed), rtol=1e-4, atol=2e-3 if 'int8' in line else 1e-5)
    assert_close(host(sums), host(other_sums), rtol=1e-2 if 'int8' in line else 1e-4)


def test_a_codec_for_what_all_share_already() -> None:
    run(program(f'chain(mean(), mean(codec=int8())) | {SGD}', 'simulated'), batches(1))


# Uneven shards.


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
    assert size(program(MEAN, 'mesh', weighted=True), uneven) == four_floats + 2 * one_float


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
    kept = [state.params, state.opt_state[0].compression.residual, state.opt_state[1][0].mu, state.opt_state[1][0].nu]
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
