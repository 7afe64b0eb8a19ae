"""The training step under constraints: what it costs, what it keeps, and what is the same."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from constrained_step_fixtures import BALL, BATCH, EVERY, GAP, SMALL, SMALL_EACH, after, bits, loss, program, start

from jaxdist import int8, mean
from jaxdist.constraints import Constraint, LagrangianObjective, growing, inequality, linear, nupi
from jaxdist.core import mesh, workers
from jaxdist.ledger import traced_step
from jaxdist.training.step import make_step, means

# What it costs.


@pytest.mark.slow
@pytest.mark.parametrize(
    'constraints, order, numbers',
    [
        ((BALL,), 'alternating', 0),
        ((SMALL,), 'alternating', 2),
        ((GAP, SMALL, BALL), 'simultaneous', 6),
        ((GAP,), 'extragradient', 8),
        ((SMALL_EACH,), 'alternating', 0),
        ((EVERY,), 'alternating', 0),
    ],
)
def test_what_crosses_are_the_numbers_of_the_violations(constraints: Any, order: str, numbers: int) -> None:
    """Of a mean or a rate numerator and denominator; of extragradients both twice, and the gradient too."""

    def sent(*held: Constraint) -> Fraction:
        made = program(*held, workers=workers.abstract(4), made={'order': order} if held else None)
        first = program(*held, made={'order': order} if held else None).init
        rows = traced_step(made.step, made.state, BATCH, {'workers': 4}, 10, initial=lambda: first(jax.random.key(0)))
        return sum((row.bytes_per_step or Fraction(0) for row in rows), Fraction(0))

    twice = 3 if order == 'extragradient' else 0
    assert sent(*constraints) - sent() == Fraction(2 * 3, 4) * 4 * (numbers + twice)


def test_the_step_is_compiled_once() -> None:
    made = program(BALL, GAP, dual=nupi(0.1, 0.1), made={'penalty': growing(1.0), 'every': 2})
    after(made, 3)
    assert made.step._cache_size() == 1


# What is the same.


@pytest.mark.slow
@pytest.mark.parametrize('order', ['alternating', 'primal_first', 'extragradient'])
def test_a_batch_taken_in_parts_gives_the_same(order: str) -> None:
    with jax.enable_x64(True):
        whole, _ = after(program(BALL, GAP, SMALL, made={'order': order, 'penalty': 0.5}), 8)
        parts, _ = after(program(BALL, GAP, SMALL, made={'order': order, 'penalty': 0.5}, accumulate=2), 8)
        assert bits(whole.step) == bits(parts.step)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole.params, parts.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole.duals, parts.duals)


def test_parameters_cut_over_a_model_axis_change_nothing() -> None:
    cut = workers.on_mesh(mesh.make({'workers': 2, 'model': 4}))
    four = {**BATCH, 'x': np.pad(BATCH['x'], ((0, 0), (0, 1)))}
    begin: Callable[[Any], Any] = lambda key: {'w': jnp.array([0.5, -0.5, 1.0, 0.0])}  # noqa: E731
    update = optax.chain(mean(), optax.sgd(0.1))
    how = {'objective': LagrangianObjective((BALL, GAP), optax.sgd(0.2))}
    ours = make_step(loss, begin, update, four, cut, rules=[('w', ('model',))], **how)
    theirs = make_step(loss, begin, update, four, workers.simulated(2), **how)
    (ours_after, told), (theirs_after, expected) = after(ours, 8, four), after(theirs, 8, four)
    np.testing.assert_allclose(ours_after.params['w'], theirs_after.params['w'], rtol=1e-5)
    assert told['constraints']['gap'] == pytest.approx(expected['constraints']['gap'], rel=1e-5, abs=1e-6)
    assert ours_after.params['w'].sharding.spec == jax.P('model')


@pytest.mark.slow
def test_gradients_through_a_codec_reach_the_same_multiplier() -> None:
    coded = optax.chain(mean(codec=int8(block=4), feedback=True), optax.sgd(0.1))
    exact, rough = after(program(BALL), 300)[1], after(program(BALL, update=coded), 300)[1]
    found, expected = (told['constraints']['ball'] for told in (rough, exact))
    assert abs(expected['value']) < 1e-3
    assert found['multiplier'] == pytest.approx(expected['multiplier'], rel=0.05)


@pytest.mark.slow
def test_short_floats_for_the_loss_leave_multipliers_long() -> None:
    state, told = after(program(BALL, SMALL, GAP, compute=jnp.bfloat16), 5)
    assert {x.dtype for x in jax.tree.leaves(state.objective.multipliers)} == {jnp.dtype('float32')}
    assert all(math.isfinite(shown['value']) for shown in told['constraints'].values())


@pytest.mark.slow
def test_a_function_of_features_learns_by_the_derivative_of_the_lagrangian() -> None:
    of = linear(lambda b: b['x'], 3)
    every = inequality('every', lambda p, b: jnp.abs(b['x'] @ p['w']), over='example', bound=0.2, multiplier=of)
    with jax.enable_x64(True):

        def term(own: Any, params: Any) -> jax.Array:
            return jnp.mean(of.apply(own, BATCH) * (jnp.abs(BATCH['x'] @ params['w']) - 0.2))

        params = start(jax.random.key(0))
        own = jax.tree.map(lambda p, g: p + 0.2 * g, of.start(), jax.grad(term)(of.start(), params))
        slope = jax.grad(lambda p: jnp.mean((BATCH['x'] @ p['w'] - BATCH['y']) ** 2) + term(own, p))(params)
        for count in (1, 4):
            state, _ = after(program(every, workers=workers.simulated(count)), 1)
            np.testing.assert_allclose(state.params['w'], params['w'] - 0.1 * slope['w'], atol=1e-12)
            np.testing.assert_allclose(state.objective.multipliers['every']['weight'], own['weight'], atol=1e-12)


# What is not finite, and what is unknown.


@pytest.mark.slow
@pytest.mark.parametrize('order', ['alternating', 'simultaneous', 'primal_first', 'extragradient'])
def test_a_step_that_is_not_finite_changes_no_multiplier(order: Any) -> None:
    """The loss does not see what the constraint does."""
    seen = inequality('seen', lambda p, b: b['z'] * jnp.sum(p['w']), over='mean', bound=-1.0)
    batch = {**BATCH, 'z': np.ones(8, np.float32)}
    made = program(seen, BALL, batch=batch, dual=nupi(0.1, 0.1), made={'order': order})
    state, _ = after(made, 2, batch)
    before = bits((state.params, state.objective))
    state, metrics = made.step(state, {**batch, 'z': np.array([1, np.nan, *[1] * 6], np.float32)})
    assert bits((state.params, state.objective)) == before
    assert means(metrics)['skipped'] == 1
    state, metrics = made.step(state, batch)
    assert bits(state.objective) != before[1:]


@pytest.mark.slow
def test_what_is_not_finite_only_after_the_parameters_moved_changes_no_multiplier() -> None:
    edge = inequality('edge', lambda p: jnp.sqrt(jnp.sum(p['w']) - 0.9))  # of parameters that the first step leaves
    made = program(edge, BALL, update=optax.chain(mean(), optax.sgd(-0.5)), made={'order': 'primal_first'})
    state, told = after(made, 1)
    assert math.isnan(float(edge.value(edge.sums(state.params, BATCH))))
    assert (told['skipped'], bits(state.objective)) == (0, bits(made.init(jax.random.key(0)).duals))


@pytest.mark.slow
def test_an_example_that_is_not_in_the_batch_keeps_its_multiplier_under_momentum_too() -> None:
    far = inequality('far', lambda p, b: 1.0 + jnp.abs(b['x'] @ p['w']), over='example', rows=4)
    batches = [{**BATCH, 'row': np.array(rows)} for rows in ([0, 1] * 4, [0, 2] * 4)]
    made = program(far, batch=batches[0], dual=optax.sgd(0.1, momentum=0.9))
    state, _ = made.step(made.init(jax.random.key(0)), batches[0])
    first = np.asarray(state.objective.multipliers['far'])
    state, _ = made.step(state, batches[1])
    second = np.asarray(state.objective.multipliers['far'])
    np.testing.assert_array_equal(second[:, [1, 3]], first[:, [1, 3]])
    assert (second[:, [0, 2]] > first[:, [0, 2]]).all()


def test_a_true_measure_that_is_not_finite_has_the_step_left_out() -> None:
    lost = inequality('lost', lambda p: jnp.sum(p['w']), true=lambda p: jnp.log(-jnp.sum(p['w'] ** 2)))
    state, told = after(program(lost, made={'order': 'simultaneous'}), 1)
    assert told['skipped'] == 1
    assert float(state.objective.multipliers['lost']) == 0


@pytest.mark.slow
def test_a_row_that_has_no_multiplier_is_left_out_loudly() -> None:
    """Of more examples than `rows`: nobody else's multiplier is taken in its place."""
    few = inequality('few', lambda p, b: b['x'] @ p['w'], over='example', rows=2)
    for rows, skipped in (([0, 1] * 4, 0), ([0, 1, 0, 2, 0, 1, 0, 1], 1)):
        _, told = after(program(few, batch=(batch := {**BATCH, 'row': np.array(rows)})), 1, batch)
        assert told['skipped'] == skipped


@pytest.mark.slow
def test_a_worker_without_anybody_of_a_group_matters_not() -> None:
    apart = {**BATCH, 'group': np.array([0, 0, 1, 1, 1, 1, 0, 0])}  # each of four workers has one group alone
    mixed = {name: array[[0, 2, 1, 3, 4, 6, 5, 7]] for name, array in apart.items()}
    for batch in (apart, mixed):
        _, told = after(program(GAP), 4, batch)
        assert math.isfinite(told['constraints']['gap']['value'])
    np.testing.assert_allclose(
        *(after(program(GAP), 4, b)[0].objective.multipliers['gap'] for b in (apart, mixed)), rtol=1e-5
    )


def test_a_rate_of_nobody_is_unknown_and_moves_nothing() -> None:
    nobody = {**BATCH, 'group': np.zeros(8, int)}
    state, told = after(program(GAP), 3, nobody)
    free, _ = after(program(), 3, nobody)
    assert math.isnan(told['constraints']['gap']['value'])
    assert float(state.objective.multipliers['gap']) == 0.0
    assert bits(state.params) == bits(free.params)
