"""The wrappers of optax: each gives the numbers of optax on the whole batch, or is refused with what to write."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxdist
from jaxdist import mean
from jaxdist.core import mesh
from jaxdist.training.step import shared_params

W, STEPS = 2, 5
PLACES = {'simulated': jaxdist.simulated(W), 'mesh': jaxdist.on_mesh(mesh.make({'workers': W}))}
BATCH = {'x': np.arange(24, dtype=np.float32).reshape(8, 3) / 10}
Rule = optax.GradientTransformation
Average = Callable[[], Rule]


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    del key
    return {'loss': jnp.sum((params['w'] - batch['x']) ** 2 + params['b'] ** 2)}, batch['x'].shape[0]


def start(key: jax.Array) -> Any:
    del key
    return {'w': jnp.zeros(3), 'b': jnp.ones(())}


def sgd(rate: Any = 0.1) -> Rule:
    return optax.sgd(rate, momentum=0.5)


def finite(step: jax.Array, *_: Any) -> jax.Array:
    return step % 2 == 0


GROUPS = {'w': 'rows', 'b': 'rest'}
WORKS: dict[str, Callable[[Average], Rule]] = {
    'MultiSteps after': lambda m: optax.chain(m(), optax.MultiSteps(sgd(), 2).gradient_transformation()),
    'apply_every': lambda m: optax.chain(optax.apply_every(2), m(), sgd()),
    'apply_if_finite after': lambda m: optax.chain(m(), optax.apply_if_finite(sgd(), 3)),
    'conditionally_mask after': lambda m: optax.chain(m(), optax.conditionally_mask(sgd(), finite)),
    'conditionally_transform after': lambda m: optax.chain(m(), optax.conditionally_transform(sgd(), finite)),
    'masked after': lambda m: optax.chain(m(), optax.masked(sgd(), {'w': True, 'b': False})),
    'partition': lambda m: optax.partition(
        {'rows': optax.chain(m(), sgd()), 'rest': optax.chain(m(), sgd(0.2))}, GROUPS
    ),
    'frozen after': lambda m: optax.chain(m(), optax.partition({'rows': sgd(), 'rest': optax.set_to_zero()}, GROUPS)),
    'inject_hyperparams': lambda m: optax.inject_hyperparams(lambda rate: optax.chain(m(), sgd(rate)))(rate=0.1),
    'inject_hyperparams after': lambda m: optax.chain(
        m(), optax.inject_hyperparams(sgd)(rate=optax.linear_schedule(0.1, 0.0, 10))
    ),
    'schedule_free': lambda m: contrib.schedule_free(optax.chain(m(), optax.sgd(0.1)), 0.1),
    'schedule_free after': lambda m: optax.chain(m(), contrib.schedule_free_sgd(0.1)),
    'sam after': lambda m: optax.chain(m(), contrib.sam(sgd(), optax.sgd(0.05), 2)),
    'named_chain': lambda m: optax.named_chain(('mean', m()), ('sgd', sgd())),
    'flatten': lambda m: optax.flatten(optax.chain(m(), sgd())),
    'ema': lambda m: optax.chain(m(), sgd(), optax.ema(0.9)),
    'split_real_and_imaginary': lambda m: contrib.split_real_and_imaginary(optax.chain(m(), sgd())),
}


def trained(update: Rule, where: str) -> Any:
    """The parameters for evaluation after the steps."""
    program = jaxdist.make_step(loss, start, update, BATCH, PLACES[where])
    state = program.init(jax.random.key(0))
    for _ in range(STEPS):
        state, _ = program.step(state, BATCH)
    return jax.device_get(shared_params(state, program.layout))


@functools.cache
def alone(name: str) -> Any:
    """The same by optax on the whole batch."""
    update = optax.with_extra_args_support(WORKS[name](optax.identity))
    params = start(jax.random.key(0))
    state = update.init(params)
    gradient = jax.grad(lambda p: jnp.divide(loss(p, BATCH, params)[0]['loss'], 8))
    for _ in range(STEPS):
        updates, state = update.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    if name.startswith('schedule_free'):
        inner = state[1] if 'after' in name else state
        params = contrib.schedule_free_eval_params(inner, params)
    return jax.device_get(params)


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('name', WORKS)
def test_it_is_optax_on_the_whole_batch(name: str, where: str) -> None:
    params = trained(WORKS[name](mean), where)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), params, alone(name))


BRANCH = 'has a branch or a loop that must be the same on all workers, .*: put mean'
REFUSED: dict[str, tuple[Callable[[], Rule], str]] = {
    'MultiSteps': (
        lambda: optax.MultiSteps(optax.chain(mean(), sgd()), 2).gradient_transformation(),
        r'write accumulate\(every=\.\.\., update=\.\.\.\) in its place',
    ),
    'apply_if_finite': (lambda: optax.apply_if_finite(optax.chain(mean(), sgd()), 3), f'apply_if_finite {BRANCH}'),
    'conditionally_mask': (lambda: optax.conditionally_mask(optax.chain(mean(), sgd()), finite), BRANCH),
    'conditionally_transform': (lambda: optax.conditionally_transform(optax.chain(mean(), sgd()), finite), BRANCH),
    'lookahead': (
        lambda: optax.lookahead(optax.chain(mean(), sgd()), 3, 0.5),
        r'LookaheadParams, .* sgd\(0\.1\) \| diloco\(every=5, outer=sgd\(0\.5\)\)',
    ),
    'masked': (
        lambda: optax.masked(optax.chain(mean(), sgd()), {'w': True, 'b': False}),
        "parameter 'b' would come out different",
    ),
    'frozen': (
        lambda: optax.partition({'rows': optax.chain(mean(), sgd()), 'rest': optax.set_to_zero()}, GROUPS),
        "parameter 'b' would come out different .* Put mean",
    ),
    'sam': (lambda: contrib.sam(optax.chain(mean(), sgd()), optax.sgd(0.05), 2), 'Put mean'),
    'sam, opaque': (
        lambda: optax.chain(mean(), contrib.sam(sgd(), optax.sgd(0.05), 2, opaque_mode=True)),
        "sam needs 'grad_fn', and a training step gives",
    ),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('name', REFUSED)
def test_it_is_refused_with_what_is_right(name: str, where: str) -> None:
    make, problem = REFUSED[name]
    with pytest.raises(jaxdist.InputError, match=problem):
        trained(make(), where)


def test_schedule_free_local_training_is_evaluated_at_the_mean_of_the_averages() -> None:
    """Identical data on all workers: the parameters are those of one worker."""
    same = {'x': np.tile(BATCH['x'][:4], (W, 1))}
    update = optax.chain(contrib.schedule_free_sgd(0.1), jaxdist.average(every=2))
    program = jaxdist.make_step(loss, start, update, same, PLACES['mesh'])
    state = program.init(jax.random.key(0))
    one = optax.with_extra_args_support(contrib.schedule_free_sgd(0.1))
    params: Any = start(jax.random.key(0))
    inner = one.init(params)
    for _ in range(3):
        state, _ = program.step(state, same)
        gradient = jax.grad(lambda p: loss(p, {'x': BATCH['x'][:4]}, p)[0]['loss'] / 4)(params)
        updates, inner = one.update(gradient, inner, params)
        params = optax.apply_updates(params, updates)
    expected = contrib.schedule_free_eval_params(inner, params)
    got = shared_params(state, program.layout)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), got, expected)
