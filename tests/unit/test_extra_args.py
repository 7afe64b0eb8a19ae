"""Extra arguments of optax rules: which a line uses, what they cost, which lines are refused, and the step guard."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_fixtures import (
    INT8,
    LOCAL,
    MEAN,
    PLACES,
    ROWS,
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

from jaxdist import ledger
from jaxdist.constraints.constraint import inequality
from jaxdist.constraints.objective import LagrangianObjective
from jaxdist.core.errors import InputError
from jaxdist.core.extra_args import ExtraArgs, find_extra_args
from jaxdist.core.gradient import gradients
from jaxdist.core.objective import WorkerLoss
from jaxdist.core.program import Program, update_program
from jaxdist.core.workers import abstract, simulated
from jaxdist.line import build
from jaxdist.training import step as steps
from jaxdist.training.step import make_step

PLATEAU = 'contrib.reduce_on_plateau(patience=1)'
BACKTRACKING = 'sgd(1.0) | scale_by_backtracking_linesearch(max_backtracking_steps=3)'
PARAMS = jax.eval_shape(init, jax.random.key(0))


def find(line: str, **options: Any) -> ExtraArgs:
    return find_extra_args(build(line), PARAMS, simulated(4), **options)


def step_text(program: Program[Any]) -> str:
    return str(jax.make_jaxpr(program.run)(program.state, batches(1)[0]))


@pytest.mark.parametrize(
    'line, names, diverge',
    [
        (MEAN, set(), False),
        (LOCAL, set(), True),
        ('mean() | contrib.sam(sgd(0.1), sgd(0.1))', set(), False),  # accepts no such keywords
        ('mean() | polyak_sgd()', {'value'}, False),
        ('polyak_sgd() | average(every=2)', {'value'}, True),
        ('des_loc(optimizer=polyak_sgd(), every=2, moments={})', {'value'}, True),
        ('fed_admm(optimizer=polyak_sgd(), every=3, rho=0.1)', {'value'}, True),
        (f'clip_by_global_norm(1.0) | {PLATEAU} | clip_by_global_norm(1.0) | mean()', {'value'}, False),
        ('mean() | apply_if_finite(contrib.momo(1.0), 3)', {'value'}, False),
        (f'mean() | {BACKTRACKING}', {'value', 'grad', 'value_fn'}, False),
        ('mean() | lbfgs(linesearch=None)', set(), False),
    ],
)
def test_a_trace_finds_the_arguments_that_a_line_uses(line: str, names: set[str], diverge: bool) -> None:
    assert find(line) == ExtraArgs(frozenset(names), diverge)


def test_an_argument_that_changes_nothing_is_not_computed() -> None:
    def update(updates: Any, state: Any, params: Any, *, value: Any = None, grad: Any = None, **_: Any) -> Any:
        if value is not None:
            jax.tree.map(lambda g: g * value, grad)
        return updates, state

    ignores = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    (batch,) = batches(1)
    texts = [
        step_text(make_step(loss, init, optax.chain(build('mean()'), rule), batch, simulated(4)))
        for rule in (ignores, optax.identity())
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize('line', [MEAN, INT8, LOCAL])
def test_a_line_without_extra_arguments_has_the_program_of_a_step_that_knows_of_none(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = step_text(make_program(line))
    monkeypatch.setattr(steps, 'find_extra_args', lambda *_, **__: ExtraArgs())
    assert step_text(make_step(loss, init, build(line), batches(1)[0], simulated(4))) == text


@pytest.mark.parametrize('weighted, more', [(False, 4), (True, 8)])
def test_the_loss_costs_an_all_reduce_of_a_number_or_two(weighted: bool, more: int) -> None:
    (batch,) = batches(1, weight=UNEVEN if weighted else None)
    sent = []
    for rule in ('sgd(0.1)', 'polyak_sgd(0.1)'):
        program = make_step(loss, init, build(f'mean() | {rule}'), batch, abstract(4))
        rows = ledger.traced(program.run, {'workers': 4}, program.state, batch)
        sent.append(sum(row.sent for row in rows))
    assert sent[1] - sent[0] == more * 2 * 3 / 4


def test_in_local_training_the_loss_costs_nothing() -> None:
    (batch,) = batches(1)
    program = make_step(loss, init, build('polyak_sgd(0.1) | average(every=2)'), batch, abstract(4))
    rows = ledger.traced(program.run, {'workers': 4}, program.state, batch)
    assert all(row.branch for row in rows)


# Refusals.

GIVES = 'and a training step gives value, grad, value_fn only'
BEFORE = 'combines the loss of all workers with the gradient of one: put mean() before it'
AHEAD = 'evaluates the loss at parameters that differ between workers: put mean() before it'
SAME = 'must be the same on all workers, and its values differ between workers here'
ROUND = 'there is no loss of the parameters that it moves: take an optimiser that needs a gradient only'


@pytest.mark.parametrize(
    'line, text',
    [
        ('polyak_sgd() | mean()', f'scale_by_polyak {BEFORE}'),
        ('contrib.momo(1.0) | mean()', f'momo {BEFORE}'),
        ('apply_if_finite(polyak_sgd(), 3) | mean()', f'scale_by_polyak {BEFORE}'),
        (f'{BACKTRACKING} | mean()', f'scale_by_backtracking_linesearch {AHEAD}'),
        ('lbfgs() | mean()', f'scale_by_zoom_linesearch {AHEAD}'),
        (
            'MultiSteps(adam(0.1), every_k_schedule=2) | mean()',
            'their gradients differ here: write accumulate(every=..., update=...) in its place',
        ),
        (f'{PLATEAU} | average(every=2)', f'reduce_on_plateau has a branch or a loop that {SAME}: use mean()'),
        ('lbfgs() | average(every=2)', f'scale_by_zoom_linesearch has a branch or a loop that {SAME}'),
        ('adam(0.1) | diloco(every=2, outer=polyak_sgd())', f"diloco: scale_by_polyak needs 'value', and {ROUND}"),
        (f'adam(0.1) | diloco(every=2, outer=sgd(1.0) | {PLATEAU})', "diloco: reduce_on_plateau needs 'value', and"),
        ('parameter_server(optimizer=polyak_sgd())', 'the optimiser does not work entry by entry'),
        ('mean() | lookahead(sgd(0.1), 5, 0.5)', 'which a training step does not have. sgd(0.1) | diloco(every=5'),
        ('mean() | contrib.sophia(0.1)', f"hutchinson_estimator_diag_hessian needs 'obj_fn', {GIVES}"),
        ('mean() | contrib.sam(sgd(0.1), sgd(0.1), opaque_mode=True)', f"sam needs 'grad_fn', {GIVES}"),
        (f'mean() | contrib.sam(sgd(0.1), sgd(0.1)) | {PLATEAU}', 'lines in which each transformation accepts extra'),
    ],
)
def test_a_line_whose_arguments_do_not_fit_is_refused(line: str, text: str) -> None:
    with pytest.raises(InputError) as error:
        find(line)
    assert text in str(error.value)


def test_a_rule_that_needs_something_else_is_refused() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any, labels: Any) -> Any:
        return updates, state

    update = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    with pytest.raises(InputError, match=f"needs 'labels', {GIVES}"):
        find_extra_args(optax.chain(build('mean()'), update), PARAMS, simulated(4))


def test_errors_of_other_kinds_are_left_as_they_are() -> None:
    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        raise TypeError('three sheep')

    with pytest.raises(TypeError, match='three sheep'):
        find_extra_args(optax.GradientTransformationExtraArgs(optax.identity().init, update), PARAMS, simulated(4))


def test_without_a_training_step_there_is_no_loss() -> None:
    with pytest.raises(InputError, match="scale_by_polyak needs 'value', and there is no loss here"):
        update_program(build('mean() | polyak_sgd()'), lambda: jnp.zeros(3), jnp.ones((2, 3)), simulated(2))


def constrained(line: str, order: str = 'alternating') -> Program[Any]:
    ball = inequality('ball', lambda params: params['w'] @ params['w'])
    objective = LagrangianObjective((ball,), optax.sgd(0.1), order=order)
    return make_step(loss, init, build(line), batches(1)[0], simulated(4), objective=objective)


@pytest.mark.parametrize('rule', ['polyak_sgd()', 'contrib.momo(1.0)', BACKTRACKING, 'lbfgs()'])
def test_under_constraints_a_rule_of_loss_and_gradient_is_refused(rule: str) -> None:
    with pytest.raises(InputError, match='with constraints or virtual shards there is the gradient alone'):
        constrained(f'mean() | {rule}')


def test_under_constraints_a_plateau_is_one_of_the_loss() -> None:
    line = f'mean() | clip_by_global_norm(1.0) | adam(0.1) | {PLATEAU}'
    program, (batch,) = constrained(line), batches(1)
    before = start(program)
    expected = float(loss(before.params, batch, None)[0]['loss']) / ROWS
    state, _ = program.step(before, batch)
    np.testing.assert_allclose(state.opt_state[-1].best_value, expected, rtol=1e-6)
    with pytest.raises(InputError, match="order='extragradient' evaluates the update before the loss"):
        constrained(line, 'extragradient')


# The step guard.


@functools.cache
def program(line: str, where: str, **options: Any) -> Program[Any]:
    return make_program(line, where, **options)


def same_bits(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


GUARDED = ['polyak_sgd(0.1)', 'contrib.momo(1.0)', f'adam(0.1) | {PLATEAU}', BACKTRACKING]


@pytest.mark.parametrize(
    'rule, where',
    [*((rule, where) for rule in GUARDED for where in PLACES), pytest.param('lbfgs()', 'mesh', marks=pytest.mark.slow)],
)
def test_a_rejected_step_leaves_no_trace_in_the_state(rule: str, where: str) -> None:
    one, data = program(f'mean() | {rule}', where), batches(3)
    state, _ = run(one, data[:2])
    before = host(state)
    state, _ = run(one, [with_nan(data[2], 4, 1)], state)
    same_bits((state.params, state.opt_state), (before.params, before.opt_state))
    assert int(state.skipped) == 1
    state, metrics = run(one, [data[2]], state)
    assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(host(state.params))])).all()
    assert not metrics['skipped'].any()


@pytest.mark.parametrize('where', PLACES)
def test_in_local_training_only_the_worker_of_a_bad_loss_stays(where: str) -> None:
    one, data = program('contrib.momo(1.0) | average(every=9)', where), batches(3)
    state, _ = run(one, data[:2])
    before = host(state)
    state, metrics = run(one, [with_nan(data[2], 4, 1)], state)
    after = host(state)
    assert metrics['skipped'].tolist() == [0, 1, 0, 0]
    for old, new in zip(*(jax.tree.leaves((s.params, s.opt_state[0])) for s in (before, after)), strict=True):
        if new.ndim and new.shape[0] == 4:
            np.testing.assert_array_equal(new[1], old[1])
            assert np.isfinite(new).all()
    assert (after.params['b'][[0, 2, 3]] != before.params['b'][[0, 2, 3]]).all()


def test_in_local_training_a_rejected_loss_is_zero_as_the_gradient_is() -> None:
    args = ExtraArgs(frozenset({'value'}), diverge=True)
    worker_loss = WorkerLoss(loss, 1, None, uneven=False, axis='workers', gradients=gradients(loss, 1, None))
    for value, ok, expected in ((np.nan, False, 0.0), (2.0, True, 2.0)):
        given = args.arguments(worker_loss, jnp.float32(value), {}, jnp.bool(ok), {}, {}, jax.random.key(0))
        assert jax.tree.map(float, given) == {'value': expected}


def test_a_loss_that_is_not_finite_is_rejected_though_its_gradient_is() -> None:
    def with_offset(params: Any, batch: Any, key: Any) -> Any:
        sums, count = loss(params, batch, key)
        return {'loss': sums['loss'] + jnp.sum(batch['offset'])}, count

    (batch,) = batches(1)
    bad = {**batch, 'offset': np.full(ROWS, np.inf, np.float32)}
    skipped = []
    for line in ('mean() | contrib.momo(1.0)', MEAN):
        one = make_step(with_offset, init, build(line), bad, place('simulated', 4))
        state, _ = one.step(start(one), bad)
        skipped.append(int(state.skipped))
    assert skipped == [1, 0]


def test_a_batch_without_examples_has_no_loss() -> None:
    one = program(f'mean() | sgd(0.1) | {PLATEAU}', 'simulated', weighted=True)
    state, _ = run(one, batches(1, weight=np.zeros(ROWS)))
    assert (int(state.skipped), float(state.opt_state[-1].best_value)) == (1, np.inf)


@pytest.mark.slow
def test_a_line_search_with_parameters_sharded_over_a_model_axis() -> None:
    rules = (('w', ('model',)),)

    def wide(key: jax.Array) -> Any:
        return {'w': jax.random.normal(key, (4,)), 'b': jnp.zeros(())}

    data = [{**batch, 'x': np.concatenate([batch['x'], batch['x'][:, :1] ** 2], 1)} for batch in batches(2)]
    ends = []
    for who, more in ((place('mesh', 2, model=2), {'rules': rules}), (simulated(2), {})):
        one = make_step(loss, wide, build('mean() | lbfgs()'), data[0], who, **more)
        ends.append(host(run(one, data)[0].params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *ends)
