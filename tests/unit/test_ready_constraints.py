"""The registered constraints, their evaluation over a data set and the verdicts, against plain NumPy."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist.constraints import (
    Constraint,
    LagrangianObjective,
    Term,
    augmented_lagrangian,
    demographic_parity,
    density,
    effective_multiplier,
    equal_opportunity,
    equality,
    first_best,
    inequality,
    kkt,
    linear,
    squared_norm,
)
from jaxdist.constraints import better as keep
from jaxdist.constraints.dual_ascent import constraint_metrics
from jaxdist.constraints.evaluation import judge, make_measure
from jaxdist.constraints.verdict import Observation, verdicts
from jaxdist.core import registry
from jaxdist.core.types import Model, Task
from jaxdist.line import build_constraint, build_dual, build_value
from jaxdist.models import Perceptron

RNG = np.random.default_rng(0)
MODEL = Perceptron(hidden=()).build(Task('classes', (3,), 2))
PARAMS = MODEL.init(jax.random.key(1))
BATCH = {
    'x': RNG.normal(size=(60, 3)).astype(np.float32),
    'y': RNG.integers(0, 2, 60),
    'group': RNG.integers(0, 2, 60),
    'weight': RNG.uniform(0.5, 2.0, 60).astype(np.float32),
}


def margins() -> np.ndarray:
    head = jax.device_get(PARAMS['head'])
    out = BATCH['x'] @ head['kernel'] + head['bias']
    return np.asarray(out[:, 1] - out[:, 0])


def rate(positive: np.ndarray, group: int, among: np.ndarray) -> float:
    members = (BATCH['group'] == group) & among
    return float((BATCH['weight'] * positive)[members].sum() / BATCH['weight'][members].sum())


@pytest.mark.parametrize('make, only', [(demographic_parity, False), (equal_opportunity, True)])
def test_rates_of_groups_are_those_of_a_plain_count(make: Any, only: bool) -> None:
    among = BATCH['y'] == 1 if only else np.ones(60, bool)
    fair = make(MODEL, gap=0.1)
    for sums, positive in ((fair.judged, margins() > 0), (fair.sums, 1 / (1 + np.exp(-margins())))):
        gap = rate(positive, 1, among) - rate(positive, 0, among)
        np.testing.assert_allclose(fair.value(sums(PARAMS, BATCH)), [gap - 0.1, -gap - 0.1], atol=1e-5)


def test_parity_of_real_numbers_is_of_the_mean_predictions() -> None:
    model = Perceptron(hidden=()).build(Task('values', (3,), 1))
    params = model.init(jax.random.key(0))
    out = BATCH['x'] @ np.asarray(params['head']['kernel'][:, 0])
    means = [np.average(out[BATCH['group'] == g], weights=BATCH['weight'][BATCH['group'] == g]) for g in (0, 1)]
    fair = demographic_parity(model, gap=0.0)
    np.testing.assert_allclose(fair.value(fair.sums(params, BATCH))[0], means[1] - means[0], atol=1e-5)


@pytest.mark.parametrize('task', [Task('classes', (3,), 3), Task('tokens', (3,), 2)])
def test_groups_are_compared_in_two_classes_or_values_alone(task: Task) -> None:
    with pytest.raises(ValueError, match=rf'the model has {task.classes} {task.kind}'):
        demographic_parity(Model(lambda key: {}, lambda p, b, key: ({}, jnp.ones(())), (), None, task))


def test_a_batch_without_groups_is_refused() -> None:
    fair = demographic_parity(MODEL)
    with pytest.raises(ValueError, match=r'needs batches with `group` \[B\], 0 or 1: give the data a group'):
        fair.sums(PARAMS, {'x': BATCH['x'], 'y': BATCH['y']})


def test_density_counts_and_its_proxy_falls_with_the_weights() -> None:
    sparse = density(bound=0.4, small=0.1, width=0.5)
    first, second = {'kernel': jnp.array([[0.5, -0.5], [0.05, 0.0]])}, {'kernel': jnp.array([1.0]), 'bias': jnp.ones(9)}
    weights = {'a': first, 'b': second}
    assert float(sparse.value(sparse.judged(weights, {}))) == pytest.approx(3 / 5 - 0.4)
    smooth = lambda w: sparse.value(sparse.sums(w, {}))  # noqa: E731
    expected = np.mean([0.5, 0.5, 0.0025 / 0.2525, 0, 1 / 1.25]) - 0.4
    assert float(smooth(weights)) == pytest.approx(expected, abs=1e-6)
    slope = jax.grad(smooth)(weights)
    assert (np.sign(slope['a']['kernel']) == np.sign(weights['a']['kernel'])).all()


def test_the_slopes_of_the_augmented_lagrangian() -> None:
    """By the value: the effective multiplier. By the multiplier: max(g, -l / c). Also at penalty 0."""
    value, multiplier = jnp.array([-2.0, -0.1, 0.5, 0.5]), jnp.array([0.5, 0.5, 0.5, 0.0])
    for kind in ('inequality', 'equality'):
        for penalty in (0.0, 2.0):
            f = lambda g, m, kind=kind, c=penalty: augmented_lagrangian(3.0, [Term(kind, g, m)], c)  # noqa: E731
            by_value, by_multiplier = jax.grad(f, (0, 1))(value, multiplier)
            np.testing.assert_allclose(by_value, effective_multiplier(Term(kind, value, multiplier), penalty))
            expected = np.maximum(value, -multiplier / penalty) if kind == 'inequality' and penalty else value
            np.testing.assert_allclose(by_multiplier, expected)
            near = f(value, multiplier) if penalty else f(value, multiplier, c=1e-6)
            np.testing.assert_allclose(f(value, multiplier), near, rtol=1e-5)
            squares = np.square(value if kind == 'equality' else np.maximum(value, 0)).sum()
            np.testing.assert_allclose(f(value, 0 * multiplier), 3 + penalty / 2 * squares, rtol=1e-6)


def test_norms_of_each_tensor_and_of_all() -> None:
    tree = {'a': {'kernel': jnp.full(2, 2.0)}, 'b': {'kernel': jnp.ones(3), 'bias': jnp.ones(1)}}
    every, each = squared_norm(bound=1.0), squared_norm(bound=1.0, path='.*kernel', each=True)
    assert float(every.value(every.sums(tree, {}))) == 8 + 3 + 1 - 1
    np.testing.assert_allclose(each.value(each.sums(tree, {})), [7, 2])


@pytest.mark.parametrize('make', ['squared_norm(bound=0.0)', 'density(bound=1.0)', 'density(bound=0.5, width=0.0)'])
def test_bounds_out_of_range_are_refused(make: str) -> None:
    with pytest.raises(ValueError, match='bound='):
        build_constraint(make, None)


@pytest.mark.parametrize('entry', [*registry.constraints().values(), *registry.duals().values()], ids=lambda e: e.name)
def test_every_example_of_the_registry_can_be_built(entry: registry.Entry) -> None:
    for text in entry.examples:
        if entry.kind == 'constraint':
            assert build_constraint(text, MODEL).name == entry.name
        else:
            (build_value if entry.name == 'growing' else build_dual)(text)


@pytest.mark.slow
def test_judged_over_batches_as_over_all_at_once() -> None:
    """Over all workers, per worker, per example, and of the parameters; by the true measure."""
    size = lambda p, b: jnp.abs(b['x'][:, 0]) * p  # noqa: E731
    one = inequality('one', lambda p: jnp.array([p, -p]), bound=0.5)
    mean = inequality('mean', size, over='mean', bound=0.5)
    local = inequality('local', size, over='mean', bound=0.5, per_worker=True)
    most = inequality('most', size, over='example', bound=0.5)
    true = equality('true', lambda p, b: 0 * b['x'][:, 0], over='mean', true=lambda p, b: -size(p, b))
    empty = inequality('empty', lambda p, b: (jnp.zeros(2), jnp.array([0.0, 1.0])), over='ratio', bound=1.0)
    objective = LagrangianObjective((one, mean, local, most, true, empty))
    loss = lambda p, b: ({'loss': jnp.sum(b['weight'])}, jnp.sum(b['weight']) / 2)  # noqa: E731
    measure = make_measure(objective, loss, 2, None)
    batches = [{name: x[start : start + 20] for name, x in BATCH.items()} for start in (0, 20, 40)]
    batches[2]['weight'] = np.concatenate([BATCH['weight'][40:55], np.zeros(5, np.float32)])
    judgement = judge(objective, [measure(3.0, batch) for batch in batches])
    sizes, weight = 3 * np.abs(BATCH['x'][:55, 0]), BATCH['weight'][:55]
    first = np.concatenate([np.arange(10), np.arange(20, 30), np.arange(40, 50)])
    rest = np.setdiff1d(np.arange(55), first)
    per_worker = [np.average(sizes[rows], weights=weight[rows]) for rows in (first, rest)]
    expected = {
        'one': 2.5,
        'mean': np.average(sizes, weights=weight) - 0.5,
        'local': max(per_worker) - 0.5,
        'most': sizes.max() - 0.5,
        'true': -np.average(sizes, weights=weight),
        'empty': -1.0,
    }
    assert judgement.values == pytest.approx(expected, rel=1e-5)
    assert judgement.violations == pytest.approx({**expected, 'true': -expected['true'], 'empty': 0}, rel=1e-5)
    assert judgement.loss == pytest.approx(2.0)
    assert not judgement.holds(1.0)
    assert judgement.holds(1e3)


def test_of_several_values_the_worst_is_shown() -> None:
    for kind, expected in (('inequality', (1.0, 1.0, -5.0)), ('equality', (-2.0, 2.0, -5.0))):
        two = Constraint('two', kind, lambda p: p)
        metrics = constraint_metrics(two, jnp.array([4.0, -5.0]), *[(jnp.array([-2.0, 1.0]),)] * 2)
        assert (metrics['value'], metrics['violation'], metrics['multiplier']) == expected


@pytest.mark.parametrize(
    'value, history, expected',
    [
        (-3.0, [Observation(0.0, 0.0)], r'it holds: violation 0 <= 0.01; slack 3, the bound costs nothing'),
        (
            0.005,
            [Observation(0.1, 2.0)],
            r'it holds: violation 0.005 <= 0.01; relaxing the bound by 1 would lower the loss at the rate of 2',
        ),
        (
            -3.0,
            [Observation(0.0, 2.0)],
            r'it holds: violation 0 <= 0.01; slack 3, but the multiplier, 2, has not converged and is not a price',
        ),
        (float('nan'), [Observation(None, 0.0)], 'it is unknown: no example determines its value'),
        (
            0.5,
            [Observation(0.5, 0.1)],
            r'it does not hold: violated by 0.5 \(tolerance 0.01\)\. Too few records to determine the reason',
        ),
        (
            0.5,
            [Observation(0.5, t) for t in range(10)],
            'Infeasible as posed, .* grew from 5 halfway to 9, and .* did not shrink',
        ),
        (0.5, [Observation(0.5, (-1) ** t * (1 + 0.2 * t)) for t in range(10)], 'The violation oscillates'),
        (
            0.5,
            [Observation(0.5, 0.0) for t in range(10)],
            'Its multiplier never moved from 0: nothing enforces the constraint',
        ),
        (
            0.5,
            [Observation(5 - 0.5 * t, t) for t in range(10)],
            r'Train longer: .* the violation still shrinks \(3.25, then 0.75\)',
        ),
        (
            0.5,
            [Observation(t % 2, 3.0) for t in range(10)],
            r'The violation oscillates .*, and the multiplier is 3: a smaller dual rate',
        ),
    ],
)
def test_a_verdict_gives_the_outcome_and_its_reason(value: float, history: list[Observation], expected: str) -> None:
    verdict = verdicts({'it': value}, {'it': max(value, 0.0)}, {'it': history}, 0.01, ['it'])['it']
    assert re.search(expected, verdict.words), verdict.words
    assert verdict.holds == verdict.words.startswith('it holds')


def test_one_of_several_multipliers_is_no_price() -> None:
    assert verdicts({'it': 0.0}, {'it': 0.0}, {'it': [Observation(0.0, 2.0)]}, 0.01)['it'].words == (
        'it holds: violation 0 <= 0.01; the largest of its multipliers is 2'
    )


def test_an_unknown_constraint_does_not_hold() -> None:
    empty = LagrangianObjective((inequality('empty', lambda p, b: (0.0, 0.0), over='ratio', bound=1.0),))
    measure = make_measure(empty, lambda p, b: ({'loss': jnp.ones(())}, 1.0), 1, None)
    judgement = judge(empty, [measure(0.0, {'x': jnp.ones(2)})])
    assert np.isnan(judgement.values['empty'])
    assert not judgement.holds(1e9)


@pytest.mark.slow
def test_there_is_a_residual_for_each_condition() -> None:
    """At x = (2, 0): f = |x|^2, g = x0 - 1 <= 0, h = x1 - 0.5 = 0, and examples z_b x0 - 1 <= 0."""
    constraints = [
        inequality('g', lambda x: x[0] - 1),
        equality('h', lambda x: x[1], bound=0.5),
        inequality('e', lambda x, b: b['z'] * x[0], over='example', bound=1.0),
    ]
    multipliers = {'g': jnp.float32(-0.25), 'h': jnp.float32(3.0), 'e': jnp.array([1.0, 3.0])}
    residuals = kkt(lambda x: x @ x, constraints, jnp.array([2.0, 0.0]), multipliers, {'z': jnp.array([0.0, 2.0])})
    # Gradient: 2 x + l (1, 0) + m (0, 1) + mean of l_b z_b (1, 0) = (4 - 0.25 + 3, 3).
    assert [float(x) for x in residuals] == pytest.approx([6.75, 3.0, 0.25, 4.5])


def test_the_best_iterate_is_feasible_if_any_is() -> None:
    best = first_best(jnp.zeros(()))
    iterates = [(9.0, 0.9), (1.0, 0.5), (0.5, 0.7), (7.0, 0.01), (6.0, 0.02), (5.0, 0.0), (5.5, 0.0), (0.1, 0.2)]
    kept = []
    for number, (objective, violation) in enumerate(iterates):
        best = keep(best, jnp.float32(number), jnp.float32(objective), jnp.float32(violation), tolerance=0.01)
        kept.append(int(best.params))
    assert kept == [0, 1, 1, 3, 3, 5, 5, 5]


def test_multipliers_of_features_are_not_negative() -> None:
    multipliers = linear(lambda batch: batch['x'], 3)
    own = {'weight': jnp.array([5.0, -9.0, 1.0]), 'bias': jnp.float32(-3.0)}
    assert (multipliers.apply(own, BATCH) >= 0).all()
