"""Non-finite gradients: all workers reject the step bit for bit or, in local training, only the worker concerned."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from step_fixtures import (
    INT8,
    LOCAL,
    LOCAL_INT8,
    MEAN,
    PLACES,
    REPLICATED,
    SGD,
    batches,
    descend,
    gradient,
    host,
    init,
    loss,
    make_program,
    place,
    run,
    shard,
    start,
    with_nan,
)

from jaxdist.line import build
from jaxdist.training.metrics import means
from jaxdist.training.step import State, make_step


def same_bits(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


def finite(tree: Any) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(host(tree)))


def moved(a: Any, b: Any) -> bool:
    """Whether every parameter of every worker has changed."""
    return all(np.all(x != y) for x, y in zip(jax.tree.leaves(host(a)), jax.tree.leaves(host(b)), strict=True))


@functools.cache
def reached(line: str, where: str, steps: int) -> Any:
    """The state after `steps` steps with finite gradients, in NumPy."""
    return host(run(make_program(line, where), batches(steps))[0])


# Replicated parameters.


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('line', REPLICATED)
def test_all_workers_reject_the_step(line: str, where: str) -> None:
    """Parameters, moments, residuals, queues and the codec's key do not change; the step is counted."""
    program, data = make_program(line, where), batches(4)
    before = reached(line, where, 2)
    state, _ = run(program, data[:2])
    state, metrics = program.step(state, with_nan(data[2], 4, 1))
    same_bits((state.params, state.opt_state), (before.params, before.opt_state))
    assert (int(state.step), int(state.skipped)) == (3, 1)
    assert metrics['skipped'].tolist() == [1] * 4
    assert means(metrics)['skipped'] == 1
    state, metrics = program.step(state, data[3])
    assert finite(state)
    assert moved(state.params, before.params)
    assert (int(state.step), int(state.skipped), metrics['skipped'].tolist()) == (4, 1, [0] * 4)


@pytest.mark.parametrize('line', [pytest.param(line, marks=[pytest.mark.slow] * (line != MEAN)) for line in REPLICATED])
def test_a_rejected_step_has_no_effect_on_later_steps(line: str) -> None:
    """Only the step counter differs: with it, a state without the rejected step gives the same bits."""
    program, data = make_program(line), batches(4)
    state, _ = run(program, [*data[:2], with_nan(data[2], 4, 0, 3), data[3]])
    other, _ = run(program, data[:2])
    other, _ = program.step(other._replace(step=other.step + 1), data[3])
    same_bits((state.params, state.opt_state), (other.params, other.opt_state))


@pytest.mark.parametrize('bad', [(0,), (3,), (0, 1, 2, 3)])
def test_any_worker_can_have_the_bad_gradient(bad: tuple[int, ...]) -> None:
    program, (batch,) = make_program(INT8, 'mesh'), batches(1)
    state, _ = run(program, [with_nan(batch, 4, *bad)])
    same_bits(state.params, start(program).params)
    assert int(state.skipped) == 1


@pytest.mark.parametrize('value', [np.inf, -np.inf, 1e30])
def test_infinities_and_overflow(value: float) -> None:
    """With 1e30 the data are finite, but the gradient overflows."""
    program, (batch,) = make_program(MEAN), batches(1)
    batch['x'][7] *= np.float32(value)
    state, _ = run(program, [batch])
    same_bits(state.params, start(program).params)


def test_one_bad_part_of_an_accumulation_rejects_the_step() -> None:
    program, (batch,) = make_program(MEAN, accumulate=4), batches(1)
    batch['y'][-1] = np.nan  # the last part of the last worker
    state, metrics = run(program, [batch])
    same_bits(state.params, start(program).params)
    assert metrics['skipped'].tolist() == [1] * 4


@pytest.mark.slow
def test_one_worker() -> None:
    for where in PLACES:
        program, data = make_program(INT8, where, 1), batches(2)
        state, _ = run(program, [data[0], with_nan(data[1], 1, 0)])
        same_bits(state.params, run(program, data[:1])[0].params)
        assert int(state.skipped) == 1


# Local training.


def rows(tree: Any, layout: Any, *workers: int) -> Any:
    """The rows of some workers in the leaves that vary over workers."""
    return jax.tree.map(lambda x, varies: x[list(workers)] if varies else np.zeros(0), host(tree), layout)


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('line', [LOCAL, pytest.param(LOCAL_INT8, marks=pytest.mark.slow)])
@pytest.mark.parametrize('in_a_round', [False, True])
def test_only_the_worker_with_the_bad_gradient_rejects_the_step(line: str, where: str, in_a_round: bool) -> None:
    """It does not move, and keeps its optimiser state; the others continue, between rounds without any effect."""
    program, data = make_program(line, where), batches(5)
    steps = 1 if in_a_round else 2
    bad = with_nan(data[steps], 4, 1)
    before = reached(line, where, steps)
    state, metrics = run(program, [*data[:steps], bad])
    local = [(s.params, s.opt_state) for s in (before, state, program.layout)]
    kept = local if not in_a_round else [(opt_state[0],) for _, opt_state in local]
    same_bits(rows(kept[1], kept[2], 1), rows(kept[0], kept[2], 1))
    assert metrics['skipped'].tolist() == state.skipped.tolist() == [0, 1, 0, 0]
    assert finite(state)
    if not in_a_round:
        clean, _ = run(program, data[: steps + 1])
        same_bits(rows((clean.params, clean.opt_state), local[2], 0, 2, 3), rows(local[1], local[2], 0, 2, 3))
    later, metrics = run(program, data[steps + 1 :], state)
    assert finite(later)
    assert (metrics['skipped'].tolist(), later.skipped.tolist()) == ([0] * 4, [0, 1, 0, 0])


def test_a_round_with_a_rejected_step_matches_numpy() -> None:
    """The mean is over all workers, with the unchanged parameters of the one that rejects the step; all move to it."""
    program, data = make_program(LOCAL), batches(2)
    state, _ = run(program, [data[0], with_nan(data[1], 4, 2)])
    first = jax.tree.map(lambda x: x[0], host(start(program).params))
    after = [descend(first, gradient(first, shard(data[0], 4, i))) for i in range(4)]
    ends = [p if i == 2 else descend(p, gradient(p, shard(data[1], 4, i))) for i, p in enumerate(after)]
    mean = jax.tree.map(lambda *x: np.mean(x, 0), *ends)
    expected = jax.tree.map(lambda *x: np.stack(x), mean, mean, mean, mean)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, host(state.params), expected)


@pytest.mark.slow
def test_all_workers_reject_the_step_of_a_round() -> None:
    """They still synchronise, at the mean of their unchanged parameters."""
    for line, close in ((LOCAL, 1e-6), (LOCAL_INT8, 1e-2)):
        program, data = make_program(line), batches(4)
        before = host(reached(line, 'simulated', 1).params)
        state, _ = run(program, [data[0], with_nan(data[1], 4, 0, 1, 2, 3)])
        mean = jax.tree.map(lambda x: np.broadcast_to(x.mean(0), x.shape), before)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=close), host(state.params), mean)
        assert finite(run(program, data[2:], state)[0])


def test_a_residual_that_was_sent_is_not_kept() -> None:
    """If all reject the step of a round, the anchor's move and the new residuals add up to the old residuals."""
    program, data = make_program(f'{SGD} | average(every=1, codec=int8(), feedback=True)'), batches(2)
    stored = lambda state: host((state.opt_state[1].own.anchor, state.opt_state[1].compression.residual))  # noqa: E731
    state, _ = run(program, data[:1])
    anchor, residual = stored(state)
    state, _ = run(program, [with_nan(data[1], 4, 0, 1, 2, 3)], state)
    new_anchor, new_residual = stored(state)
    for name in ('w', 'b'):
        total = new_anchor[name] - anchor[name] + new_residual[name].mean(0)
        old = residual[name]
        np.testing.assert_allclose(total, old.mean(0), rtol=0, atol=1e-3 * np.abs(old).max())


# Without a guard.


@pytest.mark.parametrize('where', PLACES)
def test_without_a_guard_the_step_is_applied(where: str) -> None:
    program, (batch,) = make_program(MEAN, where, guard=False), batches(1)
    state, metrics = run(program, [with_nan(batch, 4, 1)])
    assert all(np.isnan(x).all() for x in jax.tree.leaves(host(state.params)))
    assert (int(state.skipped), metrics['skipped'].tolist()) == (0, [0] * 4)


def test_without_a_guard_a_round_spreads_nan() -> None:
    """This shows that the tests above can fail."""
    program, data = make_program(LOCAL, guard=False), batches(2)
    local, _ = run(program, [with_nan(data[0], 4, 1)])
    assert np.isnan(host(local.params)['b']).tolist() == [False, True, False, False]
    synchronised, _ = run(program, data[1:], local)
    assert np.isnan(host(synchronised.params)['b']).all()


@pytest.mark.slow
@pytest.mark.parametrize('line', [INT8, LOCAL])
def test_the_guard_does_not_change_finite_steps(line: str) -> None:
    data = batches(3)
    guarded, _ = run(make_program(line), data)
    bare, _ = run(make_program(line, guard=False), data)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, host((guarded.params, guarded.opt_state)), host((bare.params, bare.opt_state)))


def test_the_layout_of_the_count_of_skipped_steps() -> None:
    """One number if all workers take the same decision, one for each worker if each decides for itself."""
    (batch,) = batches(1)
    for line, shape in ((MEAN, ()), (LOCAL, (4,))):
        for where in PLACES:
            state: State = make_program(line, where).state
            assert (state.skipped.shape, state.step.shape) == (shape, ())
        program = make_step(loss, init, build(line), batch, place('mesh', 4, 2))
        assert program.state.skipped.shape == shape
