"""optax's rules that use the loss: on workers as in plain optax on the whole batch, in float64."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_fixtures import PLACES, place

from jaxdist.line import build
from jaxdist.training.step import make_step

ROWS, STEPS = 24, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 4))
DATA = {'x': X, 'y': X @ np.arange(4.0) + 0.3 * RNG.normal(size=ROWS)}
WEIGHT = np.repeat([1.0, 0.0, 2.5], ROWS // 3) * (np.arange(ROWS) % 5 + 0.5)  # worker 1 of 3 has no examples
WEIGHTED = {**DATA, 'weight': WEIGHT}

PLATEAU = 'adam(3.0) | contrib.reduce_on_plateau(patience=1, factor=0.5)'
RULES = [
    'polyak_sgd(0.05)',
    'contrib.momo(1.0)',
    'contrib.momo_adam(0.1, adapt_lower_bound=True)',
    PLATEAU,
    'MultiSteps(polyak_sgd(0.05), every_k_schedule=2)',
    'sgd(1.0) | scale_by_backtracking_linesearch(max_backtracking_steps=15)',
]
SLOW = [
    'sgd(1.0) | scale_by_backtracking_linesearch(max_backtracking_steps=15, store_grad=True)',
    'sgd(1.0) | scale_by_zoom_linesearch(max_linesearch_steps=10)',
    'lbfgs()',
]


def start() -> dict[str, Any]:
    return {'b': jnp.zeros(()), 'w': jnp.full(4, 0.1)}


def loss(params: Any, batch: Any, key: Any = None) -> tuple[dict[str, jax.Array], jax.Array]:
    del key
    squares = (3 * jnp.tanh(batch['x'] @ params['w'] + params['b']) - batch['y']) ** 2
    if 'weight' not in batch:
        return {'loss': squares.sum()}, jnp.asarray(squares.size, float)
    return {'loss': (batch['weight'] * squares).sum()}, batch['weight'].sum()


def plain(rule: str, batch: Any, steps: int = STEPS) -> tuple[Any, Any]:
    """Parameters and state after some steps of optax on one device, with the mean loss over the whole batch."""
    update = optax.with_extra_args_support(build(rule))

    def mean(params: Any) -> jax.Array:
        sums, count = loss(params, batch)
        return sums['loss'] / count

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, grad = jax.value_and_grad(mean)(params)
        updates, state = update.update(grad, state, params, value=value, grad=grad, value_fn=mean)
        return optax.apply_updates(params, updates), state

    params, state = start(), update.init(start())
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def on_workers(
    line: str, batch: Any, where: str = 'simulated', count: int = 3, steps: int = STEPS, **options: Any
) -> Any:
    """The state after some steps on workers."""
    program = make_step(loss, lambda key: start(), build(line), batch, place(where, count), **options)
    state = program.init(jax.random.key(0))
    for _ in range(steps):
        state, _ = program.step(state, batch)
    return state


def in_float64(test: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with jax.enable_x64(True):
            test(*args, **kwargs)

    return run


def assert_close(actual: Any, expected: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), actual, expected)


@pytest.mark.parametrize(
    'rule, where',
    [*((rule, where) for rule in RULES for where in PLACES)]
    + [pytest.param(rule, 'mesh', marks=pytest.mark.slow) for rule in SLOW],  # they compile long
)
@in_float64
def test_a_rule_after_a_mean_is_optax_on_the_whole_batch(rule: str, where: str) -> None:
    """On the mesh each worker takes its weighted examples in two parts, and one has none."""
    batch, options = (DATA, {}) if where == 'simulated' else (WEIGHTED, {'accumulate': 2})
    params, state = plain(rule, batch)
    assert float(optax.tree.norm(optax.tree.sub(params, start()))) > 0.1
    assert rule != PLATEAU or state[-1].scale < 1
    actual = on_workers(f'mean() | {rule}', batch, where, **options)
    assert_close(actual.params, params)
    expected = state if '|' in rule else (state,)
    assert_close(actual.opt_state[1:], expected)


@pytest.mark.parametrize(
    'line',
    [
        f'parameter_server(optimizer={PLATEAU})',
        'sgd(0.3) | contrib.reduce_on_plateau(patience=1, factor=0.5, rtol=0.5) | mean()',
    ],
)
@in_float64
def test_a_plateau_is_that_of_all_workers_wherever_it_stands(line: str) -> None:
    params, state = plain(PLATEAU if 'adam' in line else line.removesuffix(' | mean()'), WEIGHTED)
    assert state[-1].scale < 1
    assert_close(on_workers(line, WEIGHTED).params, params)


@pytest.mark.parametrize('where', PLACES)
@in_float64
def test_in_local_training_each_worker_has_its_own_loss(where: str) -> None:
    actual = on_workers('polyak_sgd(0.05) | average(every=6)', DATA, where)
    for worker in range(3):
        part = {name: x.reshape(3, 8, *x.shape[1:])[worker] for name, x in DATA.items()}
        assert_close(jax.tree.map(lambda p, i=worker: p[i], actual.params), plain('polyak_sgd(0.05)', part)[0])


@in_float64
def test_diloco_on_one_worker_is_lookahead() -> None:
    """The cure that the refusal of `lookahead` names."""
    update = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(start())
    state = update.init(params)
    for _ in range(STEPS):
        grad = jax.grad(lambda p: loss(p, DATA)[0]['loss'] / ROWS)(params.fast)
        updates, state = update.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    actual = on_workers('sgd(0.1) | diloco(every=2, outer=sgd(0.5))', DATA, count=1)
    assert_close(jax.tree.map(lambda p: p[0], actual.params), params.fast)
