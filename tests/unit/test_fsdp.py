"""Fully sharded data parallelism: bytes and memory of compiled programs, precision, noise, and what it goes with."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_fixtures import finish, losses, small

import jaxdist
from jaxdist import ledger
from jaxdist.constraints import LagrangianObjective, inequality
from jaxdist.core import mesh
from jaxdist.core.program import Program
from jaxdist.core.types import Task, Variables
from jaxdist.models import Transformer
from jaxdist.parallel import FullySharded
from jaxdist.training.checkpoint import CheckpointError
from jaxdist.training.experiment import Mesh
from jaxdist.training.step import State, shared_params

MODEL = Transformer(layers=1, width=32, heads=2).build(Task('tokens', (8,), 64))
TOKENS = {'tokens': np.random.default_rng(0).integers(0, 64, (16, 9)).astype(np.int32)}
X = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
XY = {'x': X, 'y': X @ np.float32([1, -2, 3, 0.5])}


def on(**axes: int) -> Any:
    return jaxdist.on_mesh(mesh.make(mesh.axis_table(**axes)))


def linear(params: Any, batch: Any, key: jax.Array) -> Any:
    out = batch['x'] @ params['w'] + params['b'].sum()
    return {'loss': 0.5 * jnp.sum((out - batch['y']) ** 2)}, batch['x'].shape[0]


def start(key: jax.Array) -> Any:
    return {'w': jnp.zeros(4), 'b': jnp.zeros(3)}


def program(update: str, workers: Any, **options: Any) -> Program[State]:
    return jaxdist.make_step(linear, start, jaxdist.build(update), XY, workers, **options)


def trained(made: Program[State], batch: Any = XY, steps: int = 4) -> Any:
    state = made.init(jax.random.key(0))
    for _ in range(steps):
        state, metrics = jax.block_until_ready(made.step(state, batch))
    return jax.device_get((shared_params(state, made.layout), metrics))


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b)


@pytest.mark.parametrize('compute, size', [(None, 4), (jnp.bfloat16, 2)])
def test_bytes_of_the_compiled_program_are_those_of_the_formula(compute: Any, size: int) -> None:
    workers = on(workers=2, fsdp=4)
    update = jaxdist.build('mean() | sgd(0.1)')
    made = jaxdist.make_step(MODEL.loss, MODEL.init, update, TOKENS, workers, compute=compute, guard=False)
    compiled = made.step.lower(made.state, TOKENS).compile()
    rows = [row for row in ledger.compiled(compiled, workers.mesh) if row.axes == ('fsdp',)]
    n, share = sum(x.size for x in jax.tree.leaves(made.state.params)), Fraction(3, 4)
    of = {kind: sum(row.sent for row in rows if row.kind == kind) for kind in ('all_gather', 'reduce_scatter')}
    assert of['reduce_scatter'] == share * 4 * n
    if compute is None:  # a CPU gathers bfloat16 as float32
        assert of['all_gather'] == share * size * n
    traced = ledger.cost(made, TOKENS, jax.random.key(0)).rows
    sent = {row.kind: row.bytes_per_step for row in traced if row.axes == ('fsdp',)}
    assert (sent['all_gather'], sent['reduce_scatter']) == (share * size * n, share * 4 * n)
    assert {row.dtype for row in traced if row.kind == 'reduce_scatter'} == {'float32'}


@pytest.mark.slow
@pytest.mark.parametrize(
    'update',
    ['mean(codec=int8(), feedback=True) | adam(1e-3)', 'adam(1e-3) | diloco(every=2, outer=sgd(0.7, momentum=0.9))'],
)
def test_each_device_stores_its_part(update: str) -> None:
    made = jaxdist.make_step(MODEL.loss, MODEL.init, jaxdist.build(update), TOKENS, on(workers=2, fsdp=4))
    one = jaxdist.make_step(MODEL.loss, MODEL.init, jaxdist.build(update), TOKENS, on(workers=2))
    state = jax.block_until_ready(made.step(made.init(jax.random.key(0)), TOKENS)[0])
    held = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree) if x.ndim)  # noqa: E731
    whole = ledger.memory_bytes(one.state.params)
    assert held(state.params) * 4 == whole == held(state.params) * 4
    large = lambda tree: [x for x in jax.tree.leaves(tree) if x.size > 8]  # noqa: E731
    assert held(large(state.opt_state)) * 4 == ledger.memory_bytes(large(one.state.opt_state))


LINES = {
    'mean() | sgd(0.1) | ema(0.5)': {},
    'mean() | polyak_sgd(0.1)': {},
    'mean() | sgd(0.1)': {'accumulate': 2},
}


@pytest.mark.parametrize('update', LINES)
def test_numbers_are_those_of_one_device_each(update: str) -> None:
    """Also of `polyak_sgd`, which gets the value of the loss, and of a batch in parts."""
    options = LINES[update]
    expected = trained(program(update, on(workers=2), **options))[0]
    close(trained(program(update, on(workers=2, fsdp=4), **options))[0], expected)
    assert np.abs(expected['w']).max() > 0.05


@pytest.mark.slow
def test_a_line_search_evaluates_the_loss_on_every_device() -> None:
    update = optax.chain(jaxdist.mean(), optax.lbfgs())
    make = lambda workers: jaxdist.make_step(linear, start, update, XY, workers)  # noqa: E731
    close(trained(make(on(workers=2, fsdp=4)))[0], trained(make(on(workers=2)))[0])


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_constraints_are_the_same_on_every_layout(accumulate: int) -> None:
    small = inequality('small', lambda p, b: jnp.abs(b['x'] @ p['w']), over='mean', bound=0.01)
    ball = inequality('ball', lambda p: jnp.sum(p['w'] ** 2), bound=0.1)
    options = {'objective': LagrangianObjective((small, ball), optax.sgd(0.5)), 'accumulate': accumulate}
    layouts = {'workers': 2}, {'workers': 2, 'fsdp': 4}
    (one, metrics), (other, same) = (trained(program('mean() | sgd(0.05)', on(**a), **options)) for a in layouts)
    close(other, one)
    close(same['constraints'], metrics['constraints'])
    assert metrics['constraints']['small'].values['multiplier'].min() > 0


def test_constraints_of_single_examples_are_refused() -> None:
    every = inequality('every', lambda p, b: jnp.abs(b['x'] @ p['w']), over='example', bound=0.2)
    with pytest.raises(ValueError, match=r"'every': over='example' needs a batch .* not in 4 parts, .*fsdp"):
        program('mean() | sgd(0.05)', on(fsdp=4), objective=LagrangianObjective((every,), optax.sgd(0.5)))


def with_statistics(variables: Any, batch: Any, key: jax.Array) -> Any:
    mean = 0.9 * variables.state['mean'] + 0.1 * batch['x'].mean(0)
    return *linear(variables.params, batch, key), {'mean': mean, 'steps': variables.state['steps'] + 1}


@pytest.mark.slow
def test_of_a_model_state_the_mean_is_taken() -> None:
    init = lambda key: Variables(start(key), {'mean': jnp.zeros(4), 'steps': jnp.int32(0)})  # noqa: E731
    update = jaxdist.build('mean() | sgd(0.1)')
    make = lambda workers: jaxdist.make_step(with_statistics, init, update, XY, workers)  # noqa: E731
    expected, actual = (trained(make(on(**axes)))[0] for axes in ({'workers': 2}, {'workers': 2, 'fsdp': 4}))
    close(actual.state, expected.state)
    assert actual.state['steps'] == 4


@pytest.mark.slow
def test_noise_is_drawn_anew_on_every_device() -> None:
    def noisy(params: Any, batch: Any, key: jax.Array) -> Any:
        return {'loss': params['w'].sum() * jax.random.normal(key)}, batch['x'].shape[0]

    def size(**axes: int) -> float:
        """The mean size of the gradient over forty keys."""
        update, batch = jaxdist.build('mean() | trace(0.0)'), {'x': np.ones((64, 1), np.float32)}
        made = jaxdist.make_step(noisy, lambda key: {'w': jnp.zeros(8)}, update, batch, on(**axes))
        states = (made.step(made.init(jax.random.key(k)), batch)[0] for k in range(40))
        return float(np.mean([abs(jax.block_until_ready(state).opt_state[1].trace['w'][0]) for state in states]))

    # A sum of eight independent draws is sqrt(8) times as large as one, and of the same draw eight times.
    assert 1.6 < size(fsdp=8) / size(workers=1) < 4.4


def test_a_gradient_that_is_not_finite_on_one_device_is_rejected_by_all() -> None:
    made = program('mean() | sgd(0.1)', on(workers=2, fsdp=4))
    bad = {**XY, 'x': np.where(np.arange(16)[:, None] == 5, np.nan, X)}
    params, metrics = trained(made, bad, steps=1)
    assert metrics['skipped'].tolist() == [1, 1]
    close(params, start(jax.random.key(0)))


def test_what_cannot_be_sharded_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"no parameter has a dim that 8 devices of mesh axis 'fsdp' divide.*'w': \(4,\)"
    ):
        program('mean() | sgd(0.1)', on(fsdp=8))
    with pytest.raises(
        ValueError, match='16 examples cannot be divided among 2 workers of 4 devices in 4 parts each; 32'
    ):
        program('mean() | sgd(0.1)', on(workers=2, fsdp=4), accumulate=4)


def test_rules_may_name_the_axis() -> None:
    made = program('mean() | sgd(0.1)', on(fsdp=2), rules=[('w', ('fsdp',))])
    assert made.state.params['w'].sharding.spec == jax.P('fsdp')
    assert made.state.params['b'].sharding.spec == jax.P()
    assert FullySharded({'w': jax.P('fsdp')}, 2).batch_shards == 2


@pytest.mark.slow
def test_a_run_goes_on_with_another_layout(tmp_path: Path) -> None:
    update = 'adam(0.1) | average(every=2)'
    layouts = [Mesh(workers=2), Mesh(workers=2, fsdp=4), Mesh(workers=2, fsdp=2, model=2), Mesh(workers=2)]
    for number, layout in enumerate(layouts):
        finish(small(update, 2, steps=2 * (number + 1), mesh=layout), tmp_path / 'changing')
    finish(small(update, 2, steps=8), tmp_path / 'same')
    assert losses(tmp_path / 'changing') == pytest.approx(losses(tmp_path / 'same'), rel=2e-5)


@pytest.mark.slow
def test_state_of_each_shard_is_refused_on_another_layout(tmp_path: Path) -> None:
    experiment = small('mean(codec=power_sgd(rank=1), feedback=True) | sgd(0.1)', 2, steps=2)
    finish(experiment, tmp_path)
    with pytest.raises(
        CheckpointError, match=r'compression.warm.* float32.1, 10, 1. in the checkpoint, float32.4, 10, 1.'
    ):
        finish(dataclasses.replace(experiment, steps=4, mesh=Mesh(workers=2, fsdp=4)), tmp_path)
