"""Gradients that are accumulated over steps: `optax.MultiSteps` on the whole batch, and what the guard rejects."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist
from jaxdist.core import mesh
from jaxdist.training.resize import resized
from jaxdist.training.step import shared_params

W, STEPS = 4, 7
PLACES = {'simulated': jaxdist.simulated(W), 'mesh': jaxdist.on_mesh(mesh.make({'workers': W}))}
TRUTH = np.arange(3, dtype=np.float32)


def batches(bad: tuple[int, int] | None = None) -> list[dict[str, np.ndarray]]:
    """One batch a step; `bad` is a step and a row that is not finite."""
    rng = np.random.default_rng(0)
    each = [rng.normal(size=(8, 3)).astype(np.float32) for _ in range(STEPS)]
    if bad is not None:
        each[bad[0]][bad[1]] = np.nan
    return [{'x': x, 'y': (x @ TRUTH).astype(np.float32)} for x in each]


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    del key
    return {'loss': jnp.sum((batch['x'] @ params['w'] + params['b'] - batch['y']) ** 2)}, batch['y'].shape[0]


def start(key: jax.Array) -> dict[str, jax.Array]:
    del key
    return {'w': jnp.ones(3), 'b': jnp.zeros(())}


def path(update: Any, where: str, data: list[dict[str, np.ndarray]]) -> tuple[list[Any], Any, Any]:
    """The workers' mean parameters after each step, the last state and the program."""
    program = jaxdist.make_step(loss, start, update, data[0], PLACES[where])
    state, params = program.init(jax.random.key(0)), []
    for batch in data:
        state, _ = program.step(state, batch)
        params.append(jax.device_get(shared_params(state, program.layout)))
    return params, state, program


def multi_steps(inner: optax.GradientTransformation, data: list[dict[str, np.ndarray]], every: int) -> list[Any]:
    """The same with `optax.MultiSteps` on the whole batch, without workers."""
    params, tx = start(jax.random.key(0)), optax.MultiSteps(inner, every)
    state, each = tx.init(params), []
    mean = jax.jit(jax.grad(lambda p, b: jnp.divide(*(lambda s, n: (s['loss'], n))(*loss(p, b, jax.random.key(0))))))
    for batch in data:
        updates, state = tx.update(mean(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        each.append(jax.device_get(params))
    return each


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('rule', ['sgd(0.05, momentum=0.9)', 'adamw(0.1)'])
def test_it_is_multi_steps_on_the_whole_batch(where: str, rule: str) -> None:
    params, _, _ = path(jaxdist.build(f'accumulate(every=3, update=mean() | {rule})'), where, batches())
    expected = multi_steps(jaxdist.build(rule), batches(), 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), params, expected)
    assert not np.array_equal(params[2]['w'], params[1]['w'])


@pytest.mark.parametrize('where', PLACES)
def test_a_step_that_the_guard_rejects_adds_nothing(where: str) -> None:
    bad = batches(bad=(1, 6))
    params, state, _ = path(jaxdist.build('accumulate(every=3, update=mean() | sgd(0.05))'), where, bad)
    expected = multi_steps(optax.sgd(0.05), [bad[0], *bad[2:]], 3)
    for step, other in ((0, 0), (1, 0), (2, 1), (3, 2), (6, 5)):
        np.testing.assert_allclose(params[step]['w'], expected[other]['w'], 1e-5)
    assert int(state.skipped) == 1


@pytest.mark.parametrize('where', PLACES)
def test_with_local_training_inside_a_bad_worker_adds_nothing_and_the_others_go_on(where: str) -> None:
    """Each worker takes a step every 2 batches, and parameters are averaged every 2 of these."""
    update = jaxdist.build('accumulate(every=2, update=sgd(0.05) | average(every=2))')
    bad = batches(bad=(1, 6))[:4]  # of the last worker
    params, state, _ = path(update, where, bad)
    workers = []
    for w in range(W):
        p = {'w': np.ones(3, np.float32), 'b': np.float32(0)}
        for pair in (bad[:2], bad[2:]):
            rows = [{name: x[2 * w : 2 * w + 2] for name, x in batch.items()} for batch in pair]
            rows = [row for row in rows if np.isfinite(row['x']).all()]
            errors = [(row['x'], row['x'] @ p['w'] + p['b'] - row['y']) for row in rows]
            p = {
                'w': p['w'] - 0.05 * sum(x.T @ e for x, e in errors) / 2,
                'b': p['b'] - 0.05 * sum(e.sum() for _, e in errors) / 2,
            }
        workers.append(p)
    for name in ('w', 'b'):
        np.testing.assert_allclose(params[3][name], np.mean([p[name] for p in workers], 0), 1e-5)
    assert np.sum(state.skipped) == 1


def test_a_rule_that_uses_the_loss_gets_it() -> None:
    update = jaxdist.build('accumulate(every=2, update=mean() | polyak_sgd(0.1))')
    params, _, _ = path(update, 'mesh', batches())
    other, _, _ = path(update, 'simulated', batches())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), params, other)
    assert np.abs(params[5]['w'] - TRUTH).sum() < np.abs(params[0]['w'] - TRUTH).sum()


def test_it_resumes_with_another_number_of_workers() -> None:
    """Sums become the mean of sums, so that the update is that of the same batches."""
    update = jaxdist.build('accumulate(every=3, update=mean(codec=fp16(), feedback=True) | sgd(0.05))')
    data = batches()
    _, state, program = path(update, 'simulated', data[:2])
    new = jaxdist.make_step(loss, start, update, data[0], jaxdist.simulated(2))
    state, _ = new.step(resized(state, new), data[2])
    np.testing.assert_allclose(state.params['w'], multi_steps(optax.sgd(0.05), data, 3)[2]['w'], 1e-3)
    assert program.layout.opt_state.total == {'w': True, 'b': True}


@pytest.mark.parametrize(
    'line, problem',
    [
        ('accumulate(every=0, update=mean() | sgd(0.1))', 'every=0 must be a whole number, 1 or more'),
        ('accumulate(every=linear_schedule(1, 2, 3), update=mean() | sgd(0.1))', 'every is a schedule'),
        ('accumulate(every=2, update=0.1)', 'accumulate: update is of type float'),
        ('accumulate(every=2, update=mean() | sgd(0.1)) | average(every=2)', 'workers synchronise twice'),
        ('accumulate(every=2, update=sgd(0.1))', 'would come out different on each worker'),
    ],
)
def test_bad_arguments(line: str, problem: str) -> None:
    with pytest.raises(jaxdist.InputError, match=problem):
        jaxdist.make_step(loss, start, jaxdist.build(line), batches()[0], PLACES['simulated'])


def test_multi_steps_around_a_mean_names_it() -> None:
    around = optax.MultiSteps(optax.chain(jaxdist.mean(), optax.sgd(0.1)), 2).gradient_transformation()
    with pytest.raises(jaxdist.InputError, match=r'MultiSteps .*: write accumulate\(every=\.\.\., update=\.\.\.\)'):
        jaxdist.make_step(loss, start, around, batches()[0], PLACES['simulated'])
    unfinished: Any = optax.MultiSteps(optax.sgd(0.1), 2)
    with pytest.raises(jaxdist.InputError, match=r'MultiSteps: give its gradient_transformation\(\)'):
        jaxdist.make_step(loss, start, unfinished, batches()[0], PLACES['simulated'])
