"""The constrained training step: bytes sent, invariances, rejected steps, unknown constraints."""

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
from jaxdist.training.metrics import means
from jaxdist.training.step import make_step

# Bytes sent.


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
def test_the_bytes_sent_are_those_of_the_sums(constraints: Any, order: str, numbers: int) -> None:
    """A mean or a rate sends numerator and denominator; extragradient sends both twice, and the gradient too."""

    def sent(*constraints: Constraint) -> Fraction:
        ascent = {'order': order} if constraints else None
        built = program(*constraints, workers=workers.abstract(4), ascent=ascent)
        first = program(*constraints, ascent=ascent).init
        rows = traced_step(built.step, built.state, BATCH, {'workers': 4}, 10, initial=lambda: first(jax.random.key(0)))
        return sum((row.bytes_per_step or Fraction(0) for row in rows), Fraction(0))

    twice = 3 if order == 'extragradient' else 0
    assert sent(*constraints) - sent() == Fraction(2 * 3, 4) * 4 * (numbers + twice)


def test_the_step_is_compiled_once() -> None:
    built = program(BALL, GAP, dual=nupi(0.1, 0.1), ascent={'penalty': growing(1.0), 'every': 2})
    after(built, 3)
    assert built.step._cache_size() == 1


# Invariances.


@pytest.mark.slow
@pytest.mark.parametrize('order', ['alternating', 'primal_first', 'extragradient'])
def test_accumulation_does_not_change_the_step(order: str) -> None:
    with jax.enable_x64(True):
        whole, _ = after(program(BALL, GAP, SMALL, ascent={'order': order, 'penalty': 0.5}), 8)
        parts, _ = after(program(BALL, GAP, SMALL, ascent={'order': order, 'penalty': 0.5}, accumulate=2), 8)
        assert bits(whole.step) == bits(parts.step)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole.params, parts.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole.objective, parts.objective)


def test_parameters_sharded_over_a_model_axis_change_nothing() -> None:
    sharded = workers.on_mesh(mesh.make({'workers': 2, 'model': 4}))
    four = {**BATCH, 'x': np.pad(BATCH['x'], ((0, 0), (0, 1)))}
    begin: Callable[[Any], Any] = lambda key: {'w': jnp.array([0.5, -0.5, 1.0, 0.0])}  # noqa: E731
    update = optax.chain(mean(), optax.sgd(0.1))
    objective = LagrangianObjective((BALL, GAP), optax.sgd(0.2))
    ours = make_step(loss, begin, update, four, sharded, rules=[('w', ('model',))], objective=objective)
    theirs = make_step(loss, begin, update, four, workers.simulated(2), objective=objective)
    (ours_after, metrics), (theirs_after, expected) = after(ours, 8, four), after(theirs, 8, four)
    np.testing.assert_allclose(ours_after.params['w'], theirs_after.params['w'], rtol=1e-5)
    assert metrics['constraints']['gap'] == pytest.approx(expected['constraints']['gap'], rel=1e-5, abs=1e-6)
    assert ours_after.params['w'].sharding.spec == jax.P('model')


@pytest.mark.slow
def test_gradients_through_a_codec_reach_the_same_multiplier() -> None:
    coded = optax.chain(mean(codec=int8(block=4), feedback=True), optax.sgd(0.1))
    exact, rough = after(program(BALL), 300)[1], after(program(BALL, update=coded), 300)[1]
    compressed, expected = (metrics['constraints']['ball'] for metrics in (rough, exact))
    assert abs(expected['value']) < 1e-3
    assert compressed['multiplier'] == pytest.approx(expected['multiplier'], rel=0.05)


@pytest.mark.slow
def test_multipliers_stay_float32_with_a_loss_in_bfloat16() -> None:
    state, metrics = after(program(BALL, SMALL, GAP, compute=jnp.bfloat16), 5)
    assert {x.dtype for x in jax.tree.leaves(state.objective.multipliers)} == {jnp.dtype('float32')}
    assert all(math.isfinite(each['value']) for each in metrics['constraints'].values())


@pytest.mark.slow
def test_a_function_of_features_learns_by_the_derivative_of_the_lagrangian() -> None:
    features = linear(lambda b: b['x'], 3)
    every = inequality('every', lambda p, b: jnp.abs(b['x'] @ p['w']), over='example', bound=0.2, multiplier=features)
    with jax.enable_x64(True):

        def term(own: Any, params: Any) -> jax.Array:
            return jnp.mean(features.apply(own, BATCH) * (jnp.abs(BATCH['x'] @ params['w']) - 0.2))

        params = start(jax.random.key(0))
        own = jax.tree.map(lambda p, g: p + 0.2 * g, features.init(), jax.grad(term)(features.init(), params))
        slope = jax.grad(lambda p: jnp.mean((BATCH['x'] @ p['w'] - BATCH['y']) ** 2) + term(own, p))(params)
        for count in (1, 4):
            state, _ = after(program(every, workers=workers.simulated(count)), 1)
            np.testing.assert_allclose(state.params['w'], params['w'] - 0.1 * slope['w'], atol=1e-12)
            np.testing.assert_allclose(state.objective.multipliers['every']['weight'], own['weight'], atol=1e-12)


# Non-finite values, and unknown constraints.


@pytest.mark.slow
@pytest.mark.parametrize('order', ['alternating', 'simultaneous', 'primal_first', 'extragradient'])
def test_a_step_that_is_not_finite_changes_no_multiplier(order: Any) -> None:
    """The non-finite value is in a column that the constraint uses and the loss does not."""
    column = inequality('column', lambda p, b: b['z'] * jnp.sum(p['w']), over='mean', bound=-1.0)
    batch = {**BATCH, 'z': np.ones(8, np.float32)}
    built = program(column, BALL, batch=batch, dual=nupi(0.1, 0.1), ascent={'order': order})
    state, _ = after(built, 2, batch)
    before = bits((state.params, state.objective))
    state, metrics = built.step(state, {**batch, 'z': np.array([1, np.nan, *[1] * 6], np.float32)})
    assert bits((state.params, state.objective)) == before
    assert means(metrics)['skipped'] == 1
    state, metrics = built.step(state, batch)
    assert bits(state.objective) != before[1:]


@pytest.mark.slow
def test_a_value_that_is_not_finite_only_after_the_parameters_moved_changes_no_multiplier() -> None:
    edge = inequality('edge', lambda p: jnp.sqrt(jnp.sum(p['w']) - 0.9))  # NaN after the first step
    built = program(edge, BALL, update=optax.chain(mean(), optax.sgd(-0.5)), ascent={'order': 'primal_first'})
    state, metrics = after(built, 1)
    assert math.isnan(float(edge.value(edge.sums(state.params, BATCH))))
    assert (metrics['skipped'], bits(state.objective)) == (0, bits(built.init(jax.random.key(0)).objective))


@pytest.mark.slow
def test_an_example_that_is_not_in_the_batch_keeps_its_multiplier_under_momentum_too() -> None:
    far = inequality('far', lambda p, b: 1.0 + jnp.abs(b['x'] @ p['w']), over='example', rows=4)
    batches = [{**BATCH, 'row': np.array(rows)} for rows in ([0, 1] * 4, [0, 2] * 4)]
    built = program(far, batch=batches[0], dual=optax.sgd(0.1, momentum=0.9))
    state, _ = built.step(built.init(jax.random.key(0)), batches[0])
    first = np.asarray(state.objective.multipliers['far'])
    state, _ = built.step(state, batches[1])
    second = np.asarray(state.objective.multipliers['far'])
    np.testing.assert_array_equal(second[:, [1, 3]], first[:, [1, 3]])
    assert (second[:, [0, 2]] > first[:, [0, 2]]).all()


def test_a_step_with_a_true_measure_that_is_not_finite_is_rejected() -> None:
    lost = inequality('lost', lambda p: jnp.sum(p['w']), true=lambda p: jnp.log(-jnp.sum(p['w'] ** 2)))
    state, metrics = after(program(lost, ascent={'order': 'simultaneous'}), 1)
    assert metrics['skipped'] == 1
    assert float(state.objective.multipliers['lost']) == 0


@pytest.mark.slow
def test_a_step_with_a_row_that_has_no_multiplier_is_rejected() -> None:
    """A worker has more examples than `rows`: the multiplier of another example is not used instead."""
    few = inequality('few', lambda p, b: b['x'] @ p['w'], over='example', rows=2)
    for rows, skipped in (([0, 1] * 4, 0), ([0, 1, 0, 2, 0, 1, 0, 1], 1)):
        _, metrics = after(program(few, batch=(batch := {**BATCH, 'row': np.array(rows)})), 1, batch)
        assert metrics['skipped'] == skipped


@pytest.mark.slow
def test_a_worker_without_an_example_of_a_group_makes_no_difference() -> None:
    grouped = {**BATCH, 'group': np.array([0, 0, 1, 1, 1, 1, 0, 0])}  # each of four workers has one group only
    mixed = {name: array[[0, 2, 1, 3, 4, 6, 5, 7]] for name, array in grouped.items()}
    for batch in (grouped, mixed):
        _, metrics = after(program(GAP), 4, batch)
        assert math.isfinite(metrics['constraints']['gap']['value'])
    np.testing.assert_allclose(
        *(after(program(GAP), 4, b)[0].objective.multipliers['gap'] for b in (grouped, mixed)), rtol=1e-5
    )


def test_a_rate_over_no_example_is_unknown_and_moves_nothing() -> None:
    batch = {**BATCH, 'group': np.zeros(8, int)}
    state, metrics = after(program(GAP), 3, batch)
    free, _ = after(program(), 3, batch)
    assert math.isnan(metrics['constraints']['gap']['value'])
    assert float(state.objective.multipliers['gap']) == 0.0
    assert bits(state.params) == bits(free.params)
