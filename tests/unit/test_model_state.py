"""The model state: running statistics beside the parameters, against plain NumPy loops over workers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_fixtures import place

from jaxdist import build, make_step, means
from jaxdist.constraints import LagrangianObjective, inequality
from jaxdist.core.types import Variables
from jaxdist.training.resize import changes, resized
from jaxdist.training.step import shared_params

W, ROWS, STEPS, RATE, KEEP = 4, 24, 7, 0.1, 0.75
PLACES = ('simulated', pytest.param('mesh', marks=pytest.mark.slow))


def init(key: jax.Array) -> Variables:
    del key
    return Variables({'w': jnp.ones(3), 'b': jnp.zeros(())}, {'mean': jnp.zeros(3), 'batches': jnp.int32(0)})


def loss(variables: Variables, batch: Any, key: jax.Array, axis: str | None = None) -> Any:
    """A regression on inputs less their mean, in the batch or over all workers; the state has the running mean."""
    del key
    mean = batch['x'].mean(0) if axis is None else jax.lax.pmean(batch['x'].mean(0), axis)
    params, state = variables
    errors = (batch['x'] - mean) @ params['w'] + params['b'] - batch['y']
    after = {'mean': KEEP * state['mean'] + (1 - KEEP) * mean, 'batches': state['batches'] + 1}
    return {'loss': 0.5 * jnp.sum(errors**2)}, jnp.float32(len(batch['y'])), after


@functools.cache
def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {'x': np.float32(rng.normal(1, 1, (ROWS, 3))), 'y': np.float32(rng.normal(size=ROWS))} for _ in range(STEPS)
    ]


@functools.cache
def program(update: str, where: str, sync: str | None, **options: Any) -> Any:
    state_sync = optax.identity() if sync == 'own' else build(sync) if sync else None
    return make_step(loss, init, build(update), batches()[0], place(where, W), state_sync=state_sync, **options)


def trained(update: str, where: str, sync: str | None, given: Any = None, **options: Any) -> Any:
    built = program(update, where, sync, **options)
    state = built.init(jax.random.key(0))
    for batch in batches() if given is None else given:
        state, _ = built.step(state, batch)
    return jax.device_get(state), built


def reference(sync: str | None, local: bool, parts: int = 1, bad: tuple[int, int] | None = None) -> Any:
    """The mean parameters, the running means [W, 3], and the count of batches, by NumPy loops in float64.

    Args:
        sync: 'mean', 'own', or the number of steps between two averages.
        local: whether workers train locally, with an average of the parameters every three steps.
        parts: parts of each worker's batch.
        bad: the step and the worker whose gradient is not finite.
    """
    w, b, running, count = np.ones((W, 3)), np.zeros(W), np.zeros((W, 3)), np.zeros(W, int)
    for t, batch in enumerate(batches()):
        gw, gb, after = np.zeros((W, 3)), np.zeros(W), running.copy()
        for i in range(W):
            x, y = (v.reshape(W, -1, *v.shape[1:])[i].astype(np.float64) for v in (batch['x'], batch['y']))
            for xs, ys in zip(np.split(x, parts), np.split(y, parts), strict=True):
                centred = xs - xs.mean(0)
                errors = centred @ w[i] + b[i] - ys
                gw[i] += centred.T @ errors / len(y)
                gb[i] += errors.sum() / len(y)
                after[i] = KEEP * after[i] + (1 - KEEP) * xs.mean(0)
        skips = [bad is not None and bad[0] == t and (not local or bad[1] == i) for i in range(W)]
        if not local:
            gw[:], gb[:] = gw.mean(0), gb.mean(0)
        for i in range(W):
            if not skips[i]:
                w[i], b[i], running[i], count[i] = w[i] - RATE * gw[i], b[i] - RATE * gb[i], after[i], count[i] + parts
        if local and (t + 1) % 3 == 0:
            w[:], b[:] = w.mean(0), b.mean(0)
        if not all(skips) and (sync == 'mean' or (isinstance(sync, int) and (t + 1) % sync == 0)):
            running[:] = running.mean(0)
    return {'w': w.mean(0), 'b': b.mean()}, running, count


def check(state: Any, built: Any, expected: Any) -> None:
    params, running, count = expected
    shared = jax.device_get(shared_params(state, built.layout))
    np.testing.assert_allclose(shared.params['w'], params['w'], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(shared.params['b'], params['b'], rtol=2e-5, atol=1e-6)
    values = state.model.values
    np.testing.assert_allclose(np.broadcast_to(values['mean'], running.shape), running, rtol=2e-5, atol=1e-6)
    assert np.array_equal(np.broadcast_to(values['batches'], count.shape), count)
    np.testing.assert_allclose(shared.state['mean'], running.mean(0), rtol=2e-5, atol=1e-6)


LOCAL = f'sgd({RATE}) | average(every=3)'
SYNC = f'mean() | sgd({RATE})'


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize(
    'update, sync, means',
    [
        (SYNC, None, 'mean'),
        (SYNC, 'mean()', 'mean'),
        (SYNC, 'own', 'own'),
        (SYNC, 'average(every=2)', 2),
        (LOCAL, None, 'own'),
        (LOCAL, 'mean()', 'mean'),
        (LOCAL, 'average(every=3)', 3),
    ],
)
def test_it_is_synchronised_as_asked(update: str, sync: str | None, means: Any, where: str) -> None:
    state, built = trained(update, where, sync)
    check(state, built, reference(means, update == LOCAL))
    assert built.layout.model.values == {'mean': means != 'mean', 'batches': update == LOCAL}


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('update, means', [(SYNC, 'mean'), (LOCAL, 'own')])
def test_it_goes_from_part_to_part_of_a_batch(update: str, means: str, where: str) -> None:
    check(*trained(update, where, None, accumulate=3), reference(means, update == LOCAL, parts=3))


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize(
    'update, sync, means', [(SYNC, None, 'mean'), (LOCAL, None, 'own'), (LOCAL, 'average(every=3)', 3)]
)
@pytest.mark.parametrize('name', [pytest.param('x', marks=pytest.mark.slow), 'y'])
def test_a_rejected_step_leaves_it(update: str, sync: str | None, means: Any, where: str, name: str) -> None:
    """At step 2, a round of local training, worker 1 has a value that is not finite."""
    given = [dict(batch) for batch in batches()]
    given[2][name] = given[2][name].copy()
    given[2][name][ROWS // W] = np.nan
    state, built = trained(update, where, sync, given)
    check(state, built, reference(means, update == LOCAL, bad=(2, 1)))
    assert state.skipped.sum() == 1


def test_a_state_that_is_not_finite_rejects_the_step() -> None:
    """Though the gradient is finite."""

    def overflowing(variables: Variables, batch: Any, key: jax.Array) -> Any:
        sums, count, state = loss(variables, batch, key)
        return sums, count, {**state, 'mean': state['mean'] / (1 - variables.state['batches'])}

    built = make_step(overflowing, init, build(SYNC), batches()[0], place('simulated', W))
    state = built.init(jax.random.key(0))
    for _ in range(3):
        state, metrics = built.step(state, batches()[0])
    assert int(state.skipped) == 2
    assert means(metrics)['skipped'] == 1
    assert int(state.model.values['batches']) == 1


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('count', [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_synchronised_batch_statistics_are_those_of_the_whole_batch(where: str, count: int) -> None:
    axis = 'workers'
    ours = make_step(functools.partial(loss, axis=axis), init, build(SYNC), batches()[0], place(where, count))
    state, params = ours.init(jax.random.key(0)), {'w': np.ones(3), 'b': 0.0}
    running = np.zeros(3)
    for batch in batches():
        state, _ = ours.step(state, batch)
        x, y = batch['x'].astype(np.float64), batch['y'].astype(np.float64)
        centred = x - x.mean(0)
        errors = centred @ params['w'] + params['b'] - y
        params = {'w': params['w'] - RATE * centred.T @ errors / ROWS, 'b': params['b'] - RATE * errors.mean()}
        running = KEEP * running + (1 - KEEP) * x.mean(0)
    np.testing.assert_allclose(state.params['w'], params['w'], rtol=2e-5)
    np.testing.assert_allclose(state.params['b'], params['b'], rtol=2e-5)
    np.testing.assert_allclose(state.model.values['mean'], running, rtol=2e-5)
    assert ours.layout.model.values == {'mean': False, 'batches': False}


def test_the_gradient_passes_through_the_statistics_of_all_workers() -> None:
    """The statistics depend on the parameters: the derivative of one worker's loss reaches the other's inputs."""

    def scaled(variables: Variables, batch: Any, key: jax.Array, axis: str | None = None) -> Any:
        hidden = batch['x'] @ variables.params['w']
        size = jnp.mean(hidden**2) if axis is None else jax.lax.pmean(jnp.mean(hidden**2), axis)
        errors = hidden / jnp.sqrt(size + 1.0) + variables.params['b'] - batch['y']
        return {'loss': 0.5 * jnp.sum(errors**2)}, jnp.float32(len(batch['y'])), variables.state

    whole = lambda p: scaled(Variables(p, {}), batches()[0], jax.random.key(0))[0]['loss'] / ROWS  # noqa: E731
    params = init(jax.random.key(0)).params
    expected = jax.grad(whole)(params)
    for where in ('simulated', 'mesh'):
        parts = functools.partial(scaled, axis='workers')
        built = make_step(parts, init, build('mean() | sgd(1.0)'), batches()[0], place(where, W))
        state, _ = built.step(built.init(jax.random.key(0)), batches()[0])
        for name, g in expected.items():
            np.testing.assert_allclose(params[name] - state.params[name], g, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'order',
    ['alternating', *(pytest.param(each, marks=pytest.mark.slow) for each in ('primal_first', 'extragradient'))],
)
@pytest.mark.parametrize('accumulate', [pytest.param(1, marks=pytest.mark.slow), 3])
def test_under_constraints_it_is_that_of_the_loss(order: Any, accumulate: int) -> None:
    """Measures of data see the state, measures of parameters the parameters."""
    seen = inequality('seen', lambda v, b: (v.params['w'] @ v.state['mean']) * jnp.ones(len(b['y'])), over='mean')
    small = inequality('small', lambda p: p['w'] @ p['w'], bound=100.0)
    objective = LagrangianObjective((seen, small), optax.sgd(0.1), order=order)
    for where in ('simulated', 'mesh'):
        state, _ = trained(SYNC, where, None, accumulate=accumulate, objective=objective)
        _, running, count = reference('mean', local=False, parts=accumulate)
        np.testing.assert_allclose(state.model.values['mean'], running[0], rtol=1e-5)
        assert int(state.model.values['batches']) == count[0]
        assert float(state.objective.multipliers['seen']) > 0


def test_line_searches_evaluate_the_loss_at_the_state_of_the_step() -> None:
    state, _ = trained('mean() | lbfgs()', 'simulated', None)
    np.testing.assert_allclose(state.model.values['mean'], reference('mean', local=False)[1][0], rtol=1e-5)
    assert int(state.model.values['batches']) == STEPS


def test_with_another_number_of_workers_it_is_the_mean() -> None:
    state, _ = trained(LOCAL, 'simulated', None)
    other = make_step(loss, init, build(LOCAL), batches()[0], place('simulated', 3))
    new = resized(state, other)
    assert 'model/values/mean' in changes(other.layout)[0]
    np.testing.assert_allclose(
        new.model.values['mean'], np.broadcast_to(state.model.values['mean'].mean(0), (3, 3)), rtol=1e-6
    )


def with_key(key: jax.Array) -> Variables:
    return Variables({'w': jnp.ones(3)}, {'key': key})


def test_a_random_key_may_be_part_of_it() -> None:
    """As it comes from the loss: of each worker its own, or of all the same."""

    def noisy(variables: Variables, batch: Any, key: jax.Array) -> Any:
        key, draw = jax.random.split(variables.state['key'])
        value = jnp.sum(variables.params['w'] * jax.random.normal(draw, (3,))) * batch['y'].sum()
        return {'loss': value}, jnp.float32(len(batch['y'])), {'key': key}

    for where in ('simulated', 'mesh'):
        built = make_step(noisy, with_key, build(SYNC), batches()[0], place(where, W))
        state, _ = built.step(built.init(jax.random.key(0)), batches()[0])
        assert bool((state.model.values['key'] == jax.random.split(jax.random.key(0))[0]).all())


SUMS = {'loss': 0.0}


@pytest.mark.parametrize(
    'first, returns, problem',
    [
        (lambda key: {'w': jnp.ones(3)}, lambda v: (SUMS, 1, {}), 'init must return Variables'),
        (init, lambda v: (SUMS, 1), r'must return \(sums, count, state\) with the state after'),
        (init, lambda v: SUMS, r'must return \(sums, count, state\) with sums a dict'),
        (init, lambda v: (SUMS, 1, {'mean': v.state['mean']}), "'batches' as int32.. and returned nothing"),
        (init, lambda v: (SUMS, 1, {**v.state, 'mean': v.state['mean'][:2]}), r'as float32\[3\] and returned'),
        (init, lambda v: (SUMS, 1, {**v.state, 'batches': jnp.float32(1)}), r"'batches' as int32"),
        (lambda key: Variables({'w': jnp.ones(3)}, ()), lambda v: (SUMS, 1, ()), r'the state \(\)'),
        (lambda key: Variables({'w': jnp.ones(3)}, {'n': 'x'}), lambda v: (SUMS, 1, {}), "'n' is of type str"),
    ],
)
def test_a_loss_that_does_not_fit_is_named(first: Any, returns: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_step(lambda v, b, key: returns(v), first, build(SYNC), batches()[0], place('simulated', W))


def test_a_synchronisation_without_a_state_is_refused() -> None:
    with pytest.raises(ValueError, match='state_sync synchronises a model state'):
        make_step(
            lambda p, b, key: ({'loss': p['w'].sum()}, 1),
            lambda key: {'w': jnp.ones(3)},
            build(SYNC),
            batches()[0],
            place('simulated', W),
            state_sync=build('mean()'),
        )
