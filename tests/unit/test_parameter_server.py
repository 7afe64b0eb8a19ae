"""The sharded parameter server: memory per device, refused optimisers, a model axis, another number of workers."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codec_fixtures import linear_loss, random_gradients

import jaxdist
from jaxdist import ledger, line
from jaxdist.codecs import _sharded as sharded
from jaxdist.core import collectives, mesh, workers
from jaxdist.ledger import _hlo as hlo
from jaxdist.training.resize import resized, saved_by
from jaxdist.training.step import make_step

SLOW = pytest.mark.slow
SHAPES = {'b': (5,), 's': (), 'v': (16, 6), 'w': (24, 16)}
RULES = (('w', (None, 'model')), ('v', ('model', None)))
ADAM = 'adamw(learning_rate=0.1, weight_decay=0.1)'
SERVER = f'parameter_server(optimizer={ADAM})'


def program(update: Any, count: int, model: int = 1, mode: str = 'mesh') -> Any:
    axes = {'workers': count} | ({'model': model} if model > 1 else {})
    place = workers.simulated(count) if mode == 'simulated' else workers.on_mesh(mesh.make(axes))
    transformation = line.build(update) if isinstance(update, str) else update
    start = lambda key: {name: jnp.ones(shape) for name, shape in SHAPES.items()}  # noqa: E731
    batch = random_gradients(1, count, SHAPES)[0]
    return make_step(linear_loss, start, transformation, batch, place, rules=RULES if model > 1 else ())


def trained(trainer: Any, count: int, steps: int, state: Any = None, seed: int = 0) -> Any:
    """The state after some steps, on gradients whose mean over workers does not depend on their number."""
    state = trainer.init(jax.random.key(0)) if state is None else state
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        each = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
        offsets = np.resize([0.5, -0.5], count) - np.resize([0.5, -0.5], count).mean()
        batch = {name: np.float32(x + offsets.reshape(-1, *[1] * x.ndim)) for name, x in each.items()}
        state, _ = trainer.step(state, batch)
    return state


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    for name, x in a.items():
        np.testing.assert_allclose(x, b[name], tolerance, tolerance, err_msg=name)


def test_a_device_stores_its_shard_of_the_optimisers_state() -> None:
    entries = sum(int(np.prod(shape)) for shape in SHAPES.values())
    for count in (1, 2, 4, 8):
        state = program(SERVER, count).state.opt_state
        parts = sum(-(-int(np.prod(shape)) // count) for shape in SHAPES.values())
        assert ledger.memory_bytes((state.optimizer[0].mu, state.optimizer[0].nu, state.served)) == 3 * 4 * parts
        assert parts <= entries / count + len(SHAPES)


def test_a_push_is_packed_in_one_pass() -> None:
    """A message is concatenated with its padding: 2 x 128 entries from two tensors of 36 and 84 rows of two workers."""
    shapes = {'a': (6, 12), 'b': (12, 14)}
    pack = lambda tree: sharded.reduce_scatter(tree, (), None, 0.0, jax.random.key(0))[0]  # noqa: E731
    place = jax.P(collectives.AXIS)
    code = jax.shard_map(pack, mesh=mesh.make({'workers': 2}), in_specs=jax.P(), out_specs=place)
    compiled = jax.jit(code).lower({name: jnp.ones(shape) for name, shape in shapes.items()}).compile()
    ops = [op for c in hlo.parse(compiled.as_text()).computations.values() for op in c.instructions.values()]
    written = [op for op in ops if re.search(r'f32\[2,(120|128)\]', op.shape) and op.opcode in ('concatenate', 'pad')]
    assert [op.shape.partition('{')[0] for op in written] == ['f32[2,128]']


@pytest.mark.parametrize('model', [1, pytest.param(2, marks=SLOW)])
@pytest.mark.parametrize('optimizer', [ADAM, 'sgd(0.1, momentum=0.9)'], ids=['adamw', 'sgd'])
def test_it_equals_data_parallelism(optimizer: str, model: int) -> None:
    """With SGD too: Adam does not depend on the scale of gradients, so a sum for the mean would pass."""
    updates = f'parameter_server(optimizer={optimizer})', f'mean() | {optimizer}'
    served, plain = (program(update, 4, model) for update in updates)
    close(trained(served, 4, 6).params, trained(plain, 4, 6).params)


@SLOW
def test_a_chain_works_entry_by_entry_too() -> None:
    chain = 'clip(0.5) | scale_by_adam() | scale_by_learning_rate(cosine_decay_schedule(0.1, 8))'
    served, plain = (
        program(text, 3, mode='simulated') for text in (f'parameter_server(optimizer={chain})', f'mean() | {chain}')
    )
    close(trained(served, 3, 6).params, trained(plain, 3, 6).params)


@SLOW
def test_a_model_axis_stays_sharded() -> None:
    """Each shard is sharded again over workers; nothing more is sent over the model axis, and state is sharded too."""
    text = f'parameter_server(optimizer={ADAM}, push=int8(block=32), feedback=True, pull=int8(block=32))'
    served, plain = program(text, 4, 2), program(f'mean() | {ADAM}', 4, 2)
    batch = random_gradients(1, 4, SHAPES)[0]
    over_model = []
    for each in (served, plain):
        entries = ledger.compiled(each.step.lower(each.state, batch).compile(), mesh.make({'workers': 4, 'model': 2}))
        over_model.append(ledger.totals(entry for entry in entries if 'model' in entry.axes))
    assert over_model[0] == over_model[1]
    assert served.state.opt_state.optimizer[0].mu['w'].sharding.spec == jax.P('workers', 'model')
    assert served.state.opt_state.optimizer[0].mu['w'].shape == (4, 2, 24 * 16 // 2 // 4)
    close(trained(served, 4, 20).params, trained(plain, 4, 20).params, 0.3)  # eight bits are sent


@SLOW
def test_the_error_of_a_pull_is_part_of_the_next() -> None:
    """With gradients of zero, the workers' parameters converge to the served ones, though each pull has few bits."""
    server = program('parameter_server(optimizer=sgd(0.1), pull=int2(block=64))', 2, mode='simulated')
    state = trained(server, 2, 5)
    errors = []
    for _ in range(30):
        state, _ = server.step(state, {name: np.zeros((2, *shape), np.float32) for name, shape in SHAPES.items()})
        served = np.concatenate(list(np.asarray(state.opt_state.served['w'])), axis=-1).reshape(SHAPES['w'])
        errors.append(np.abs(state.params['w'] - served).max())
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize(
    'counts, mode',
    [pytest.param(*each, marks=SLOW) for each in (((4, 3), 'simulated'), ((3, 8), 'mesh'), ((4, 1), 'mesh'))],
)
def test_another_number_of_workers_changes_nothing(counts: tuple[int, int], mode: str) -> None:
    """With the same mean gradients, a resized run ends like data parallelism with a fixed number of workers."""
    old, new = (program(SERVER, count, mode=mode) for count in counts)
    state = trained(old, counts[0], 4)
    loaded = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, saved_by(old.state, new))
    state = trained(new, counts[1], 4, resized(loaded, new), seed=1)
    plain = program(f'mean() | {ADAM}', 2, mode='simulated')
    close(state.params, trained(plain, 2, 4, trained(plain, 2, 4), seed=1).params)


REFUSED = {
    'lamb(0.1)': 'it has reduce_sum of float32',
    'adafactor(0.1)': 'does not work entry by entry',
    'contrib.muon(0.1)': 'does not work entry by entry',
    'clip_by_global_norm(1.0) | sgd(0.1)': 'clip_by_global_norm, belongs before this one',
}


@pytest.mark.parametrize('optimizer', REFUSED)
def test_an_optimiser_of_whole_tensors(optimizer: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[optimizer]):
        program(f'parameter_server(optimizer={optimizer})', 2, mode='simulated')


def test_an_optimiser_that_treats_tensors_by_their_shapes() -> None:
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    update = jaxdist.parameter_server(optax.chain(optax.add_decayed_weights(0.1, mask=mask), optax.sgd(0.1)))
    with pytest.raises(ValueError, match='treats tensors by their shapes'):
        program(update, 2, mode='simulated')


@pytest.mark.parametrize(
    'words, problem',
    [
        ('optimizer=0.1', 'optimizer is of type float'),
        ('optimizer=sgd(0.1), push=power_sgd()', 'push takes a codec of messages'),
        ('optimizer=sgd(0.1), pull=majority()', 'pull needs a codec whose error is smaller'),
        ('optimizer=sgd(0.1), feedback=True', r'feedback=True needs push=\.\.\.'),
        ('optimizer=sgd(0.1), push=int8(), feedback="ef21"', "feedback='ef21' needs"),
        ('optimizer=sgd(0.1), staleness=-1', 'staleness=-1 must be a whole number'),
    ],
)
def test_a_bad_argument(words: str, problem: str) -> None:
    with pytest.raises(line.LineError, match=problem):
        line.build(f'parameter_server({words})')
