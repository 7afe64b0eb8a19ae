"""The layout of a step's state: found from types, sharded over a model axis, restored bit for bit."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from step_fixtures import (
    ADAM,
    INT8,
    LOCAL_INT8,
    LOCAL_QUEUE,
    MEAN,
    PLACES,
    REPLICATED_QUEUE,
    batches,
    host,
    init,
    loss,
    make_program,
    place,
    run,
    start,
)

from jaxdist import ledger
from jaxdist.core.mesh import path_text
from jaxdist.core.types import Model, Task
from jaxdist.line import build
from jaxdist.models import Transformer
from jaxdist.training.step import State, make_step


def varying(tree: Any) -> set[str]:
    """The paths of the leaves that vary over workers."""
    return {path_text(path) for path, varies in jax.tree_util.tree_flatten_with_path(tree)[0] if varies}


def each(*prefixes: str) -> set[str]:
    return {f'{prefix}/{name}' for prefix in prefixes for name in ('w', 'b')}


ADAMS = each('opt_state/0/0/mu', 'opt_state/0/0/nu')
LAYOUTS = {
    MEAN: set(),
    INT8: each('opt_state/0/compression/residual'),
    LOCAL_QUEUE: each('opt_state/0/slots'),
    REPLICATED_QUEUE: set(),
    f'trace(decay=0.9) | {MEAN}': each('opt_state/0/trace'),
    f'{ADAM} | average(every=2, codec=int8())': each('params') | ADAMS | {'skipped'},
    LOCAL_INT8: each('params', 'opt_state/1/compression/residual') | ADAMS | {'skipped'},
}


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('line', LAYOUTS)
def test_the_layout_is_found_from_types(line: str, where: str) -> None:
    assert varying(make_program(line, where).layout) == LAYOUTS[line]


def test_the_anchor_is_stored_once() -> None:
    """With a codec, parameters vary over workers, and those of the last round are replicated."""
    program = make_program(LOCAL_INT8)
    state = start(program)
    assert (state.params['w'].shape, state.opt_state[1].own.anchor['w'].shape) == ((4, 3), (3,))


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('count', [1, 4])
def test_a_missing_mean_is_refused_with_the_parameter_and_the_remedy(where: str, count: int) -> None:
    (batch,) = batches(1)
    for guard in (True, False):
        with pytest.raises(ValueError, match=r"parameter 'b' \(and 1 more\) would come out different") as error:
            make_step(loss, init, build('adamw(learning_rate=1e-3)'), batch, place(where, count), guard=guard)
    assert 'mean() before the optimiser' in str(error.value)
    assert 'average(every=...) after it' in str(error.value)


def test_only_parameters_that_diverge_are_named() -> None:
    """All gradients must be averaged."""
    only_w = optax.masked(build('mean()'), {'w': True, 'b': False})
    (batch,) = batches(1)
    with pytest.raises(ValueError, match="parameter 'b' would come out"):
        make_step(loss, init, optax.chain(only_w, optax.sgd(0.1)), batch, place('simulated', 4))


def test_per_worker_noise_makes_workers_diverge() -> None:
    """Gradients are averaged, but updates vary over workers."""
    noise = optax.GradientTransformation(
        lambda p: (), lambda g, s, p=None: (jax.tree.map(lambda x: x + jax.lax.axis_index('workers'), g), s)
    )
    (batch,) = batches(1)
    with pytest.raises(ValueError, match='would come out different'):
        make_step(loss, init, optax.chain(build('mean()'), noise, optax.sgd(0.1)), batch, place('mesh', 4))


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('line', [INT8, LOCAL_INT8])
def test_a_restored_state_continues_bit_for_bit(where: str, line: str) -> None:
    """From NumPy arrays: `program.state` has the sharding of each leaf."""
    program, data = make_program(line, where), batches(6)
    uninterrupted = host(run(program, data)[0])

    def put(shape: Any, x: np.ndarray) -> jax.Array:
        value = jax.random.wrap_key_data(x) if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key) else x
        return jax.device_put(value, shape.sharding)

    for stop in (1, 4):
        saved = host(run(program, data[:stop])[0])
        again, _ = run(program, data[stop:], jax.tree.map(put, program.state, saved))
        jax.tree.map(np.testing.assert_array_equal, host(again), uninterrupted)


# Workers of two devices each.

MOMENTUM = 'sgd(learning_rate=0.5, momentum=0.9)'
LINES = {
    'dense': f'mean() | {MOMENTUM}',
    'int8': f'mean(codec=int8(), feedback=True) | {MOMENTUM}',
    'local': f'delay(steps=1) | {MOMENTUM} | average(every=2, codec=int8(), feedback=True)',
}


@functools.cache
def transformer() -> tuple[Model, tuple[dict[str, np.ndarray], ...]]:
    tokens = np.random.default_rng(0).integers(0, 17, (3, 8, 5)).astype(np.int32)
    model = Transformer(layers=1, width=16, heads=2, mlp=2).build(Task('tokens', (4,), 17))
    return model, tuple({'tokens': x} for x in tokens)


class Trained(NamedTuple):
    """Three steps of the transformer: the first and the last state, and the compiled step's collectives."""

    first: State
    last: State
    sent: list[ledger.Collective]


@functools.cache
def trained(name: str, model_axis: int = 2) -> Trained:
    """Four workers, each sharded over `model_axis` devices."""
    (model, data), workers = transformer(), place('mesh', 4, model_axis)
    program = make_step(model.loss, model.init, build(LINES[name]), data[0], workers, rules=model.rules)
    step = program.step.lower(program.state, data[0]).compile()
    first = program.init(jax.random.key(0))
    state = jax.tree.map(lambda x: x.copy(), first)
    for batch in data:
        state, _ = step(state, batch)
    return Trained(first, state, ledger.compiled(step, workers.mesh))


def distance(a: State, b: State) -> float:
    """The largest difference of an entry of the parameters."""
    gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), host(a.params), host(b.params))
    return max(jax.tree.leaves(gaps))


@pytest.mark.slow
def test_workers_of_two_devices_train_like_workers_of_one() -> None:
    one, two = trained('dense', 1), trained('dense')
    moved = distance(one.first, one.last)
    assert moved > 0.05
    assert distance(two.last, one.last) < 1e-5 * moved


@pytest.mark.slow
def test_int8_on_shards_is_near_the_exact_mean() -> None:
    one, shards = trained('dense', 1), trained('int8')
    assert 0 < distance(shards.last, one.last) < 0.1 * distance(one.first, one.last)


@pytest.mark.slow
@pytest.mark.parametrize('name', LINES)
def test_state_is_sharded_like_its_parameter(name: str) -> None:
    """Moments, residuals, queues, anchors, and [W, ...] if they vary; in the first state too."""
    model, _ = transformer()
    whole = jax.tree.map(lambda x: x.shape, jax.eval_shape(model.init, jax.random.key(0)))
    dims = {'qkv': 2, 'proj': 0, 'up': 1, 'down': 0}
    checked = 0
    for state in trained(name)[:2]:
        for path, leaf in jax.tree_util.tree_flatten_with_path((state.params, state.opt_state))[0]:
            layer = path_text(path).split('/')[-2:-1]
            if not layer or layer[0] not in dims:
                continue
            shape = whole['block0'][layer[0]]['kernel']
            lead = leaf.shape[: leaf.ndim - len(shape)]  # workers, a queue's steps
            expected = [*lead, *shape]
            expected[len(lead) + dims[layer[0]]] //= 2
            if leaf.sharding.spec[0] == 'workers':
                expected[0] //= 4
            assert list(leaf.sharding.shard_shape(leaf.shape)) == expected, path_text(path)
            checked += 1
    assert checked == 2 * 4 * {'dense': 2, 'int8': 3, 'local': 5}[name]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['int8', 'local'])
def test_an_algorithm_sends_nothing_over_the_model_axis(name: str) -> None:
    dense, other = (
        ledger.totals(entry for entry in trained(line).sent if 'model' in entry.axes) for line in ('dense', name)
    )
    assert dense[('model',), 'float32', False] > 0
    assert other == dense


@pytest.mark.slow
def test_int8_sends_only_bytes_and_the_vote_of_the_guard() -> None:
    over_workers = ledger.totals(entry for entry in trained('int8').sent if 'workers' in entry.axes)
    assert over_workers.pop((('workers',), 'float32', False)) == 6  # 2 (W - 1) / W of one float32
    assert set(over_workers) == {(('workers',), 'uint8', False)}


def test_a_rule_that_does_not_fit_is_refused() -> None:
    (batch,) = batches(1)
    for rules, text in ([('w', ('model',))], 'does not divide'), ([('v', ('model',))], 'match no parameter'):
        with pytest.raises(ValueError, match=text):
            make_step(loss, init, build('mean() | sgd(0.1)'), batch, place('mesh', 4, 2), rules=rules)


def test_a_rule_that_shards_over_the_worker_axis_is_refused() -> None:
    (batch,) = batches(1)
    with pytest.raises(ValueError, match='workers'):
        make_step(loss, init, build(MEAN), batch, place('mesh', 3), rules=[('w', ('workers',))])


def test_a_further_axis_without_rules_changes_nothing() -> None:
    data = batches(3)
    plain, _ = run(make_program(INT8, 'mesh'), data)
    wide, _ = run(make_step(loss, init, build(INT8), data[0], place('mesh', 4, 2)), data)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), host(wide), host(plain))
