"""A gradient that is not finite: nothing moves, bit for bit; or where workers are on their own, that one sits out."""

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
    shard,
    start,
    with_nan,
)

from jaxdist.line import build
from jaxdist.training.step import State, make_step, means


def same_bits(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


def finite(tree: Any) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(host(tree)))


def moved(a: Any, b: Any) -> bool:
    """Whether every parameter of every worker is another."""
    return all(np.all(x != y) for x, y in zip(jax.tree.leaves(host(a)), jax.tree.leaves(host(b)), strict=True))


@functools.cache
def reached(line: str, where: str, steps: int) -> Any:
    """The state after so many good steps, in NumPy."""
    return host(run(program(line, where), batches(steps))[0])


# Where all share the parameters.


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('line', SHARED)
def test_nobody_takes_a_bad_step(line: str, where: str) -> None:
    """Parameters, moments, residuals, queues and the codec's key stay as they were; the step is counted."""
    made, data = program(line, where), batches(4)
    before = reached(line, where, 2)
    state, _ = run(made, data[:2])
    state, metrics = made.step(state, with_nan(data[2], 4, 1))
    same_bits((state.params, state.opt_state), (before.params, before.opt_state))
    assert (int(state.step), int(state.skipped)) == (3, 1)
    assert metrics['skipped'].tolist() == [1] * 4
    assert means(metrics)['skipped'] == 1
    state, metrics = made.step(state, data[3])
    assert finite(state)
    assert moved(state.params, before.params)
    assert (int(state.step), int(state.skipped), metrics['skipped'].tolist()) == (4, 1, [0] * 4)


@pytest.mark.parametrize('line', [pytest.param(line, marks=[pytest.mark.slow] * (line != MEAN)) for line in SHARED])
def test_after_a_bad_step_all_goes_on_as_if_it_had_not_been(line: str) -> None:
    """But for the step's number: a state that never saw it, with that number, gives the same bits."""
    made, data = program(line), batches(4)
    state, _ = run(made, [*data[:2], with_nan(data[2], 4, 0, 3), data[3]])
    other, _ = run(made, data[:2])
    other, _ = made.step(other._replace(step=other.step + 1), data[3])
    same_bits((state.params, state.opt_state), (other.params, other.opt_state))


@pytest.mark.parametrize('bad', [(0,), (3,), (0, 1, 2, 3)])
def test_whoever_it_is(bad: tuple[int, ...]) -> None:
    made, (batch,) = program(INT8, 'mesh'), batches(1)
    state, _ = run(made, [with_nan(batch, 4, *bad)])
    same_bits(state.params, start(made).params)
    assert int(state.skipped) == 1


@pytest.mark.parametrize('value', [np.inf, -np.inf, 1e30])
def test_infinities_and_overflow_too(value: float) -> None:
    """With 1e30 the data are finite, and the gradient overflows."""
    made, (batch,) = program(MEAN), batches(1)
    batch['x'][7] *= np.float32(value)
    state, _ = run(made, [batch])
    same_bits(state.params, start(made).params)


def test_a_bad_part_of_an_accumulation_is_a_bad_step() -> None:
    made, (batch,) = program(MEAN, accumulate=4), batches(1)
    batch['y'][-1] = np.nan  # the last part of the last worker
    state, metrics = run(made, [batch])
    same_bits(state.params, start(made).params)
    assert metrics['skipped'].tolist() == [1] * 4


@pytest.mark.slow
def test_one_worker_alone() -> None:
    for where in PLACES:
        made, data = program(INT8, where, 1), batches(2)
        state, _ = run(made, [data[0], with_nan(data[1], 1, 0)])
        same_bits(state.params, run(made, data[:1])[0].params)
        assert int(state.skipped) == 1


# Where workers are on their own.


def rows(tree: Any, layout: Any, *which: int) -> Any:
    """Of the leaves that differ between workers, the rows of some."""
    return jax.tree.map(lambda x, varies: x[list(which)] if varies else np.zeros(0), host(tree), layout)


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('line', [LOCAL, pytest.param(LOCAL_INT8, marks=pytest.mark.slow)])
@pytest.mark.parametrize('meeting', [False, True])
def test_the_worker_whose_gradient_it_is_sits_out_alone(line: str, where: str, meeting: bool) -> None:
    """It does not move and its optimiser stays; the others go on, and where nobody meets as if nothing had been."""
    made, data = program(line, where), batches(5)
    steps = 1 if meeting else 2
    bad = with_nan(data[steps], 4, 1)
    before = reached(line, where, steps)
    state, metrics = run(made, [*data[:steps], bad])
    own = [(s.params, s.opt_state) for s in (before, state, made.layout)]
    mine = own if not meeting else [(opt_state[0],) for _, opt_state in own]
    same_bits(rows(mine[1], mine[2], 1), rows(mine[0], mine[2], 1))
    assert metrics['skipped'].tolist() == state.skipped.tolist() == [0, 1, 0, 0]
    assert finite(state)
    if not meeting:
        clean, _ = run(made, data[: steps + 1])
        same_bits(rows((clean.params, clean.opt_state), own[2], 0, 2, 3), rows(own[1], own[2], 0, 2, 3))
    later, metrics = run(made, data[steps + 1 :], state)
    assert finite(later)
    assert (metrics['skipped'].tolist(), later.skipped.tolist()) == ([0] * 4, [0, 1, 0, 0])


def test_at_a_meeting_the_others_meet_where_numpy_does() -> None:
    """Everybody's parameters are averaged, those of the one who sits out as they were; it goes there too."""
    made, data = program(LOCAL), batches(2)
    state, _ = run(made, [data[0], with_nan(data[1], 4, 2)])
    first = jax.tree.map(lambda x: x[0], host(start(made).params))
    after = [descend(first, gradient(first, shard(data[0], 4, i))) for i in range(4)]
    there = [p if i == 2 else descend(p, gradient(p, shard(data[1], 4, i))) for i, p in enumerate(after)]
    mean = jax.tree.map(lambda *x: np.mean(x, 0), *there)
    want = jax.tree.map(lambda *x: np.stack(x), mean, mean, mean, mean)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, host(state.params), want)


@pytest.mark.slow
def test_everybody_sits_out_at_a_meeting() -> None:
    """They meet all the same, where they stand."""
    for line, close in ((LOCAL, 1e-6), (LOCAL_INT8, 1e-2)):
        made, data = program(line), batches(4)
        before = host(reached(line, 'simulated', 1).params)
        state, _ = run(made, [data[0], with_nan(data[1], 4, 0, 1, 2, 3)])
        there = jax.tree.map(lambda x: np.broadcast_to(x.mean(0), x.shape), before)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=close), host(state.params), there)
        assert finite(run(made, data[2:], state)[0])


def test_a_residual_that_was_sent_is_not_kept() -> None:
    """All sit out at a meeting: what moved the anchor and what is held still are what was held before."""
    made, data = program(f'{SGD} | average(every=1, codec=int8(), feedback=True)'), batches(2)
    memory = lambda state: host((state.opt_state[1].own.anchor, state.opt_state[1].compression.residual))  # noqa: E731
    state, _ = run(made, data[:1])
    anchor, held = memory(state)
    state, _ = run(made, [with_nan(data[1], 4, 0, 1, 2, 3)], state)
    there, left = memory(state)
    for name in ('w', 'b'):
        kept = there[name] - anchor[name] + left[name].mean(0)
        np.testing.assert_allclose(kept, held[name].mean(0), rtol=0, atol=1e-3 * np.abs(held[name]).max())


# Without a guard.


@pytest.mark.parametrize('where', PLACES)
def test_without_a_guard_it_goes_through(where: str) -> None:
    made, (batch,) = program(MEAN, where, guard=False), batches(1)
    state, metrics = run(made, [with_nan(batch, 4, 1)])
    assert all(np.isnan(x).all() for x in jax.tree.leaves(host(state.params)))
    assert (int(state.skipped), metrics['skipped'].tolist()) == (0, [0] * 4)


def test_without_a_guard_a_meeting_spreads_it() -> None:
    """So the tests above can fail."""
    made, data = program(LOCAL, guard=False), batches(2)
    alone, _ = run(made, [with_nan(data[0], 4, 1)])
    assert np.isnan(host(alone.params)['b']).tolist() == [False, True, False, False]
    met, _ = run(made, data[1:], alone)
    assert np.isnan(host(met.params)['b']).all()


@pytest.mark.slow
@pytest.mark.parametrize('line', [INT8, LOCAL])
def test_the_guard_changes_no_good_step(line: str) -> None:
    data = batches(3)
    guarded, _ = run(program(line), data)
    bare, _ = run(program(line, guard=False), data)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, host((guarded.params, guarded.opt_state)), host((bare.params, bare.opt_state)))


def test_the_count_of_skipped_steps_lies_as_the_decision_is_taken() -> None:
    """Once where all decide together, a number for each worker where it decides alone."""
    (batch,) = batches(1)
    for line, shape in ((MEAN, ()), (LOCAL, (4,))):
        for where in PLACES:
            state: State = program(line, where).state
            assert (state.skipped.shape, state.step.shape) == (shape, ())
        made = make_step(loss, init, build(line), batch, place('mesh', 4, 2))
        assert made.state.skipped.shape == shape
