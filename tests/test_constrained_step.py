"""The training step under constraints: what is refused, what it costs, what it keeps."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import average, int8, mean, mesh, workers
from jaxdist.checkpoint import CheckpointError, Checkpoints
from jaxdist.constraints import Constraint, DualAscent, equality, growing, inequality, linear, nupi, within
from jaxdist.ledger import traced_step
from jaxdist.step import make_step, means
from jaxdist.workers import Program, Workers

BATCH = {
    'x': np.linspace(-1, 1, 24).reshape(8, 3).astype(np.float32) + np.eye(8, 3, dtype=np.float32),
    'y': np.linspace(-1, 2, 8).astype(np.float32),
    'group': np.array([0, 0, 1, 0, 1, 1, 0, 1]),
}
BALL = inequality('ball', lambda p: jnp.sum(p['w'] ** 2), bound=0.1)
SMALL = inequality('small', lambda p, b: jnp.abs(b['x'] @ p['w']), over='mean', bound=0.2)
SMALL_EACH = inequality('small', lambda p, b: jnp.abs(b['x'] @ p['w']), over='mean', bound=0.2, per_worker=True)
EVERY = inequality('every', lambda p, b: jnp.abs(b['x'] @ p['w']), over='example', bound=0.2)


def rates(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    inside = jax.nn.one_hot(batch['group'], 2)
    return jax.nn.sigmoid(batch['x'] @ params['w']) @ inside, inside.sum(0)


GAP = equality('gap', rates, over='ratio', then=lambda r: r[0] - r[1])


def loss(params: Any, batch: Any, key: jax.Array) -> tuple[dict[str, jax.Array], Any]:
    return {'loss': jnp.sum((batch['x'] @ params['w'] - batch['y']) ** 2)}, batch['y'].size


def start(key: jax.Array) -> dict[str, jax.Array]:
    return {'w': jnp.array([0.5, -0.5, 1.0])}


def program(
    *constraints: Constraint,
    where: Workers = workers.simulated(4),
    update: optax.GradientTransformation = optax.chain(mean(), optax.sgd(0.1)),
    batch: Any = BATCH,
    dual: optax.GradientTransformation = optax.sgd(0.2),
    made: dict[str, Any] | None = None,
    **how: Any,
) -> Program:
    ascent = DualAscent(constraints, dual, **(made or {})) if constraints else None
    return make_step(loss, start, update, batch, where, constraints=ascent, **how)


def after(program: Program, steps: int, batch: Any = BATCH) -> tuple[Any, dict[str, Any]]:
    state = program.init(jax.random.key(0))
    for _ in range(steps):
        state, metrics = program.step(state, batch)
    return state, means(metrics)


def bits(tree: Any) -> list[bytes]:
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x).tobytes() for x in leaves]


# What it costs.


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
        made = program(*held, where=workers.imagined(4), made={'order': order} if held else None)
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
    how = {'constraints': DualAscent((BALL, GAP), optax.sgd(0.2))}
    ours = make_step(loss, begin, update, four, cut, rules=[('w', ('model',))], **how)
    theirs = make_step(loss, begin, update, four, workers.simulated(2), **how)
    (ours_after, told), (theirs_after, expected) = after(ours, 8, four), after(theirs, 8, four)
    np.testing.assert_allclose(ours_after.params['w'], theirs_after.params['w'], rtol=1e-5)
    assert told['constraints']['gap'] == pytest.approx(expected['constraints']['gap'], rel=1e-5, abs=1e-6)
    assert ours_after.params['w'].sharding.spec == jax.P('model')


def test_gradients_through_a_codec_reach_the_same_multiplier() -> None:
    coded = optax.chain(mean(codec=int8(block=4), feedback=True), optax.sgd(0.1))
    exact, rough = after(program(BALL), 300)[1], after(program(BALL, update=coded), 300)[1]
    found, expected = (told['constraints']['ball'] for told in (rough, exact))
    assert abs(expected['value']) < 1e-3
    assert found['multiplier'] == pytest.approx(expected['multiplier'], rel=0.05)


def test_short_floats_for_the_loss_leave_multipliers_long() -> None:
    state, told = after(program(BALL, SMALL, GAP, compute=jnp.bfloat16), 5)
    assert {x.dtype for x in jax.tree.leaves(state.duals.multipliers)} == {jnp.dtype('float32')}
    assert all(math.isfinite(shown['value']) for shown in told['constraints'].values())


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
            state, _ = after(program(every, where=workers.simulated(count)), 1)
            np.testing.assert_allclose(state.params['w'], params['w'] - 0.1 * slope['w'], atol=1e-12)
            np.testing.assert_allclose(state.duals.multipliers['every']['weight'], own['weight'], atol=1e-12)


# What is not finite, and what is unknown.


@pytest.mark.parametrize('order', ['alternating', 'simultaneous', 'primal_first', 'extragradient'])
def test_a_step_that_is_not_finite_changes_no_multiplier(order: Any) -> None:
    """The loss does not see what the constraint does."""
    seen = inequality('seen', lambda p, b: b['z'] * jnp.sum(p['w']), over='mean', bound=-1.0)
    batch = {**BATCH, 'z': np.ones(8, np.float32)}
    made = program(seen, BALL, batch=batch, dual=nupi(0.1, 0.1), made={'order': order})
    state, _ = after(made, 2, batch)
    before = bits((state.params, state.duals))
    state, metrics = made.step(state, {**batch, 'z': np.array([1, np.nan, *[1] * 6], np.float32)})
    assert bits((state.params, state.duals)) == before
    assert means(metrics)['skipped'] == 1
    state, metrics = made.step(state, batch)
    assert bits(state.duals) != before[1:]


def test_what_is_not_finite_only_after_the_parameters_moved_changes_no_multiplier() -> None:
    edge = inequality('edge', lambda p: jnp.sqrt(jnp.sum(p['w']) - 0.9))  # of parameters that the first step leaves
    made = program(edge, BALL, update=optax.chain(mean(), optax.sgd(-0.5)), made={'order': 'primal_first'})
    state, told = after(made, 1)
    assert math.isnan(float(edge.value(edge.sums(state.params, BATCH))))
    assert (told['skipped'], bits(state.duals)) == (0, bits(made.init(jax.random.key(0)).duals))


def test_a_row_that_has_no_multiplier_is_left_out_loudly() -> None:
    """Of more examples than `rows`: nobody else's multiplier is taken in its place."""
    few = inequality('few', lambda p, b: b['x'] @ p['w'], over='example', rows=2)
    for rows, skipped in (([0, 1] * 4, 0), ([0, 1, 0, 2, 0, 1, 0, 1], 1)):
        _, told = after(program(few, batch=(batch := {**BATCH, 'row': np.array(rows)})), 1, batch)
        assert told['skipped'] == skipped


def test_a_worker_without_anybody_of_a_group_matters_not() -> None:
    apart = {**BATCH, 'group': np.array([0, 0, 1, 1, 1, 1, 0, 0])}  # each of four workers has one group alone
    mixed = {name: array[[0, 2, 1, 3, 4, 6, 5, 7]] for name, array in apart.items()}
    for batch in (apart, mixed):
        _, told = after(program(GAP), 4, batch)
        assert math.isfinite(told['constraints']['gap']['value'])
    np.testing.assert_allclose(
        *(after(program(GAP), 4, b)[0].duals.multipliers['gap'] for b in (apart, mixed)), rtol=1e-5
    )


def test_a_rate_of_nobody_is_unknown_and_moves_nothing() -> None:
    nobody = {**BATCH, 'group': np.zeros(8, int)}
    state, told = after(program(GAP), 3, nobody)
    free, _ = after(program(), 3, nobody)
    assert math.isnan(told['constraints']['gap']['value'])
    assert float(state.duals.multipliers['gap']) == 0.0
    assert bits(state.params) == bits(free.params)


# What is refused.


@pytest.mark.parametrize(
    'measure, how, message',
    [
        (lambda p, b: b['x'], {}, r"called as measure\(params\), for over='none', and cannot be; over='mean' calls it"),
        (lambda p: p['w'], {'over': 'mean'}, r'called as measure\(params, batch\)'),
        (
            lambda p, b: b['x'].sum(),
            {'over': 'mean'},
            r'a value for each example, \[B, ...\] of 2 examples here .*gives \(\)',
        ),
        (lambda p, b: b['x'], {'over': 'example'}, r'a value for each example, \[B\] of 2 .* gives \(2, 3\)'),
        (lambda p, b: b['x'].sum(), {'over': 'ratio'}, r'\(numerator, denominator\), two arrays .* gives \(\)'),
        (lambda p, b: (b['x'].sum(), b['x'].sum(0)), {'over': 'ratio'}, r'of one shape, .* gives \(\), \(3,\)'),
        (lambda p: 1j * p['w'], {}, 'complex numbers, which have no order'),
        (lambda p: p['w'], {'over': 'max'}, "over='max' of 'bad' must be one of none, sum, mean, ratio, example"),
        (lambda p: p['w'], {'per_worker': True}, "each worker holds its own sum, mean or ratio; over='none' has none"),
        (lambda p, b: b['y'], {'over': 'mean', 'rows': 3}, "rows are for over='example', not 'mean'"),
        (
            lambda p, b: b['y'],
            {'over': 'example', 'rows': 3},
            r'rows=3 examples of a worker, and the batch has no `row`',
        ),
    ],
)
def test_a_measure_that_does_not_fit_is_refused(measure: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(inequality('bad', measure, **how))


@pytest.mark.parametrize(
    'constraints, how, message',
    [
        ((BALL, BALL), {}, r"different names: \['ball'\] stand for several"),
        ((BALL,), {'dual': optax.scale(0.1)}, "lowers the multiplier of 'ball' when that is violated by 1"),
        ((BALL,), {'made': {'order': 'both'}}, "order='both' must be one of alternating, simultaneous"),
        ((BALL,), {'made': {'every': 0}}, 'every=0 must be 1 or more'),
        ((BALL,), {'made': {'penalty': -1.0}}, r'penalty=-1.0 must be 0 or more'),
        ((EVERY,), {'accumulate': 2}, "over='example' needs a batch taken whole, not accumulate=2"),
        (
            (BALL, SMALL_EACH),
            {'dual': optax.chain(optax.sgd(0.1), within(radius=1.0))},
            "multiplier of 'ball', which all",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(constraints: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(*constraints, **how)


def test_workers_that_train_alone_are_refused() -> None:
    alone = optax.chain(optax.sgd(0.1), average(every=2))
    with pytest.raises(ValueError, match=r'ball, small: constraints are judged at parameters that all workers share'):
        program(BALL, SMALL, update=alone)


def test_no_constraints_and_names_that_are_none() -> None:
    with pytest.raises(ValueError, match=r'different names: there are none'):
        DualAscent(())
    with pytest.raises(ValueError, match=r"'a b' cannot name a constraint"):
        inequality('a b', lambda p: p)


@pytest.mark.parametrize('numbers', [{'nu': 1.0}, {'ki': 0.0, 'kp': 0.0}])
def test_a_controller_that_cannot_work_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match='nupi'):
        nupi(**{'ki': 0.1, 'kp': 0.1, **numbers})


def test_a_checkpoint_of_other_constraints_is_refused(tmp_path: Path) -> None:
    ours, theirs = program(BALL), program(SMALL)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, ours.init(jax.random.key(0)), {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match='ball'):
            checkpoints.restore(theirs.state)
