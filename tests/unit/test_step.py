"""The training step against NumPy: exact means, local steps, uneven shards, accumulation and half precision."""

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
    REPLICATED,
    ROWS,
    SGD,
    UNEVEN,
    batches,
    descend,
    gradient,
    host,
    init,
    loss,
    make_program,
    place,
    run,
    sent,
    shard,
    start,
)

from jaxdist.core.program import Program
from jaxdist.line import build
from jaxdist.training.metrics import means
from jaxdist.training.step import make_step

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def assert_close(actual: Any, expected: Any, **tolerance: float) -> None:
    jax.tree.map(functools.partial(close, **tolerance), actual, expected)


def descended(data: list[Any], params: Any) -> Any:
    """Gradient descent on whole batches, in NumPy."""
    for batch in data:
        params = descend(params, gradient(params, batch))
    return params


# The gradient of the global mean.


@pytest.mark.parametrize('where, count', [('simulated', n) for n in (1, 5)] + [('mesh', n) for n in (1, 3, 8)])
def test_a_mean_is_gradient_descent_on_the_whole_batch(where: str, count: int) -> None:
    program, data = make_program(MEAN, where, count), batches(3)
    state, metrics = run(program, data)
    assert_close(host(state.params), descended(data, host(start(program).params)))
    assert (int(state.step), metrics['count'].tolist()) == (3, [ROWS / count] * count)


def test_sixty_four_simulated_workers() -> None:
    program, data = make_program(MEAN, 'simulated', 64, rows=128), batches(3, rows=128)
    state, metrics = run(program, data)
    assert_close(host(state.params), descended(data, host(start(program).params)))
    assert metrics['loss'].shape == (64,)


@pytest.mark.parametrize('where', PLACES)
def test_adam_after_a_mean_is_adam_on_the_whole_batch(where: str) -> None:
    program, data = make_program('mean() | adamw(learning_rate=0.01)', where), batches(4)
    update = optax.adamw(0.01)
    params = host(start(program).params)
    moments = update.init(params)
    for batch in data:
        grads = jax.tree.map(jnp.float32, gradient(host(params), batch))
        change, moments = update.update(grads, moments, params)
        params = optax.apply_updates(params, change)
    assert_close(host(run(program, data)[0].params), host(params))


@pytest.mark.parametrize('where, weighted', [('simulated', False), ('mesh', False), ('simulated', True)])
def test_local_steps_and_rounds_match_numpy(where: str, weighted: bool) -> None:
    """With weights, each worker descends its own weighted mean; a worker without examples does not move."""
    program, data = make_program(LOCAL, where, weighted=weighted), batches(5, weight=UNEVEN if weighted else None)
    rows = [jax.tree.map(lambda x: x[0], host(start(program).params))] * 4
    for t, batch in enumerate(data, 1):
        rows = [descend(p, gradient(p, shard(batch, 4, i))) for i, p in enumerate(rows)]
        if t % 2 == 0:
            rows = [jax.tree.map(lambda *x: np.mean(x, 0), *rows)] * 4
    expected = jax.tree.map(lambda *x: np.stack(x), *rows)
    assert_close(host(run(program, data)[0].params), expected)


EACH = [(line, 4) for line in (*REPLICATED, LOCAL, LOCAL_INT8)] + [(INT8, 1), (LOCAL_INT8, 3)]


@pytest.mark.parametrize(
    'line, count',
    [pytest.param(*each, marks=[pytest.mark.slow] * (each not in ((MEAN, 4), (LOCAL, 4)))) for each in EACH],
)
def test_simulated_workers_equal_a_mesh(line: str, count: int) -> None:
    data = batches(4)
    simulated, sums = run(make_program(line, 'simulated', count), data)
    placed, other_sums = run(make_program(line, 'mesh', count), data)
    # Different rounding errors may change a code of int8 by one, 1 / 127 of the block's largest magnitude.
    assert_close(host(simulated), host(placed), rtol=1e-4, atol=2e-3 if 'int8' in line else 1e-5)
    assert_close(host(sums), host(other_sums), rtol=1e-2 if 'int8' in line else 1e-4)


def test_a_compressed_mean_of_replicated_gradients() -> None:
    run(make_program(f'chain(mean(), mean(codec=int8())) | {SGD}', 'simulated'), batches(1))


# Uneven shards.


@pytest.mark.parametrize('where', PLACES)
def test_uneven_shards_give_the_gradient_of_the_global_mean(where: str) -> None:
    """Counts differ, and the second worker has no examples."""
    program, data = make_program(MEAN, where, weighted=True), batches(3, weight=UNEVEN)
    state, metrics = run(program, data)
    assert_close(host(state.params), descended(data, host(start(program).params)))
    assert_close(metrics['count'], UNEVEN.reshape(4, -1).sum(1))
    assert means(metrics)['skipped'] == 0


def test_a_batch_without_examples_moves_nothing() -> None:
    program, (batch,) = make_program(MEAN, 'mesh', weighted=True), batches(1, weight=np.zeros(ROWS))
    before = host(start(program).params)
    state, metrics = run(program, [batch])
    jax.tree.map(np.testing.assert_array_equal, host(state.params), before)
    assert np.isnan(means(metrics)['loss'])


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('weighted', [False, True])
def test_accumulation_is_the_whole_batch(where: str, weighted: bool) -> None:
    weight = UNEVEN if weighted else None
    options = {'where': where, 'weighted': weighted}
    data = batches(3, weight=weight)
    parts, sums = run(make_program(MEAN, **options, accumulate=4), data)
    whole, whole_sums = run(make_program(MEAN, **options), data)
    assert_close(host(parts.params), host(whole.params), rtol=1e-6, atol=1e-7)
    assert_close(host(sums), host(whole_sums), rtol=1e-6)


def test_delayed_gradients_keep_their_weights() -> None:
    program = make_program(f'delay(steps=1) | mean() | {SGD}', weighted=True)
    first, second = batches(1, weight=UNEVEN) + batches(1, weight=UNEVEN[::-1], seed=1)
    params = host(start(program).params)
    state, _ = run(program, [first, second])
    assert_close(host(state.params), descend(params, gradient(params, first)))


def collectives(program: Program, batch: Any) -> list[str]:
    """The names of the compiled step's collectives."""
    text = program.step.lower(program.state, batch).compile().as_text()
    return re.findall(r' (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(', text)


def test_even_batches_send_gradients_and_nothing_else() -> None:
    (even,), (uneven,) = batches(1), batches(1, weight=UNEVEN)
    bare = make_program(MEAN, 'mesh', guard=False)
    assert collectives(bare, even) == ['all-reduce']
    size = lambda program, batch: sum(entry.sent for entry in sent(program, batch, place('mesh', 4)))  # noqa: E731
    four_floats, one_float = 2 * 3 / 4 * 16, 2 * 3 / 4 * 4
    assert size(bare, even) == four_floats
    assert size(make_program(MEAN, 'mesh'), even) == four_floats + one_float  # the guard's vote
    assert size(make_program(MEAN, 'mesh', guard=False, weighted=True), uneven) == four_floats + one_float  # the counts
    assert size(make_program(MEAN, 'mesh', weighted=True), uneven) == four_floats + 2 * one_float


# Half precision.


@pytest.mark.parametrize('where', PLACES)
def test_the_loss_computes_in_bfloat16_and_the_rest_in_float32(where: str) -> None:
    dtypes = []

    def half(params: Any, batch: Any, key: Any) -> Any:
        dtypes.extend(p.dtype for p in jax.tree.leaves(params))
        return loss(params, batch, key)

    (batch,) = batches(1)
    program = make_step(half, init, build(INT8), batch, place(where, 4), compute=jnp.bfloat16, accumulate=2)
    state, _ = run(program, [batch])
    assert set(dtypes) == {jnp.dtype('bfloat16')}
    kept = [state.params, state.opt_state[0].compression.residual, state.opt_state[1][0].mu, state.opt_state[1][0].nu]
    assert {x.dtype for x in jax.tree.leaves(kept)} == {np.dtype('float32')}


def test_half_precision_rounds_the_parameters_of_the_loss() -> None:
    (batch,) = batches(1)
    program = make_program(MEAN, compute=jnp.bfloat16)
    before = host(start(program).params)
    rounded = jax.tree.map(lambda p: np.float32(jnp.bfloat16(p)), before)
    expected = descend(before, gradient(rounded, batch))  # the gradient is applied to the float32 parameters
    moved, exact = host(run(program, [batch])[0].params), descend(before, gradient(before, batch))
    gap = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))  # noqa: E731
    assert gap(moved, expected) < 0.01 * gap(before, exact)
    assert np.any(moved['w'] != np.float32(jnp.bfloat16(moved['w'])))
