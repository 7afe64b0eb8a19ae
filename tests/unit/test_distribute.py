"""One's own training loop: optax chains, flax `TrainState` and own `shard_map`, and what types tell about mistakes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from flax.training.train_state import TrainState
from step_fixtures import place

import jaxdist
from jaxdist import build, distribute, make_step, pvary, simulated
from jaxdist.core import mesh as meshes
from jaxdist.core.protocol import harmless
from jaxdist.core.registry import algorithms

W, ROWS, STEPS = 4, 16, 5
PLACES = ('simulated', 'mesh')
NET = linen.Dense(1)


@functools.cache
def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    drawn = [(rng.normal(size=(ROWS, 3)), rng.normal(size=(ROWS, 1))) for _ in range(STEPS)]
    return [{'x': np.float32(x), 'y': np.float32(y)} for x, y in drawn]


def mean_loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((NET.apply({'params': params}, batch['x']) - batch['y']) ** 2)


def create(key: jax.Array, tx: Any) -> TrainState:
    return TrainState.create(apply_fn=NET.apply, params=NET.init(key, jnp.ones((1, 3)))['params'], tx=tx)


def train_step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
    value, grads = jax.value_and_grad(mean_loss)(pvary(state.params), batch)
    return state.apply_gradients(grads=grads), value


def distributed(tx: Any, where: str, step: Any = train_step) -> Any:
    init = functools.partial(create, tx=tx)
    return distribute(init, step, batches()[0], place(where, W), jax.random.key(0))


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize(
    'text',
    [
        pytest.param('mean() | adam(0.1)', marks=pytest.mark.slow),
        'mean(codec=int8(), feedback=True) | adam(0.1)',
        pytest.param('adam(0.1) | average(every=2)', marks=pytest.mark.slow),
    ],
)
def test_a_train_state_trains_as_with_make_step(text: str, where: str) -> None:
    """Parameters and the whole state of the optimiser."""

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        del key
        return {'loss': len(batch['y']) * mean_loss(params, batch)}, len(batch['y'])

    init = lambda key: NET.init(key, jnp.ones((1, 3)))['params']  # noqa: E731
    theirs = make_step(loss, init, build(text), batches()[0], place(where, W), guard=False)
    ours = distributed(build(text), where)
    a, b = theirs.init(jax.random.key(0)), ours.init(jax.random.key(0))
    for batch in batches():
        (a, _), (b, values) = theirs.step(a, batch), jax.block_until_ready(ours.step(b, batch))
        assert values.shape == (W,)
        jax.block_until_ready(a)
    assert int(b.step) == STEPS
    assert theirs.layout.params == ours.layout.params
    numbers = lambda tree: [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.number)]  # noqa: E731
    for x, y in zip(numbers((a.params, a.opt_state)), numbers((b.params, b.opt_state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_it_is_plain_optax_on_the_whole_batch() -> None:
    state = create(jax.random.key(0), optax.adam(0.1))
    ours = distributed(optax.chain(jaxdist.mean(), optax.adam(0.1)), 'mesh')
    mine = ours.init(jax.random.key(0))
    for batch in batches():
        state, _ = train_step(state, batch)
        mine, _ = jax.block_until_ready(ours.step(mine, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine.params, state.params)
    assert not any(jax.tree.leaves(ours.layout.params))


def test_parameters_that_differ_by_mistake_are_refused() -> None:
    with pytest.raises(ValueError, match='would come out different on each worker'):
        distributed(optax.adam(0.1), 'simulated')


@pytest.mark.parametrize('text', ['mean()', 'mean(codec=int8())', 'parameter_server(optimizer=sgd(0.1))'])
def test_a_gradient_that_jax_has_summed_is_refused(text: str) -> None:
    """Of replicated parameters, on a mesh: it would be W times too large."""

    def summed(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        return state.apply_gradients(grads=jax.grad(mean_loss)(state.params, batch)), jnp.zeros(())

    program = distributed(build(text), 'mesh', summed)
    with pytest.raises(
        ValueError, match=r'same on all workers: .* summed over the workers by JAX. .*jaxdist.pvary\(params\)'
    ):
        program.step(program.init(jax.random.key(0)), batches()[0])


def in_shard_map(update: Any, varying: bool, check: bool) -> Any:
    """One update in one's own `shard_map`, with the gradient at parameters that vary, or at replicated ones."""
    mesh = meshes.make({'workers': W})
    params = NET.init(jax.random.key(0), jnp.ones((1, 3)))['params']

    def step(params: Any, batch: Any) -> Any:
        grads = jax.grad(mean_loss)(pvary(params) if varying else params, batch)
        return jax.tree.map(lambda u: pvary(u)[None], update.update(grads, update.init(params), params)[0])

    spec = jax.P('workers')
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(jax.P(), spec), out_specs=spec, check_vma=check))(
        params, batches()[0]
    )


def test_in_ones_own_shard_map_types_tell_what_is_summed() -> None:
    params = NET.init(jax.random.key(0), jnp.ones((1, 3)))['params']
    expected = jax.grad(mean_loss)(params, batches()[0])
    exact = in_shard_map(jaxdist.mean(), varying=True, check=True)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, np.stack([g] * W), rtol=1e-5, atol=1e-6), exact, expected)
    for update in (jaxdist.mean(), jaxdist.mean(codec=jaxdist.int8()), jaxdist.average(every=1)):
        with pytest.raises(ValueError, match='same on all workers'):
            in_shard_map(update, varying=False, check=True)


def test_without_types_what_has_state_per_worker_is_refused() -> None:
    with pytest.raises(ValueError, match='Leave check_vma=False out'):
        in_shard_map(jaxdist.mean(codec=jaxdist.int8(), feedback=True), varying=False, check=False)
    params = NET.init(jax.random.key(0), jnp.ones((1, 3)))['params']
    exact = in_shard_map(jaxdist.mean(), varying=False, check=False)
    expected = jax.grad(mean_loss)(params, batches()[0])
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u[0], g, rtol=1e-5, atol=1e-6), exact, expected)


# The order of a chain, which is that of a line.

SGD = optax.sgd(0.1)
LOCAL = [
    text
    for name, entry in algorithms().items()
    if entry.syncs == 'parameters' and name != 'dc_asgd'
    for text in list(entry.examples)[:1]
]


@pytest.mark.parametrize(
    'text', [pytest.param(text, marks=[pytest.mark.slow] * (i % 5 > 0)) for i, text in enumerate(LOCAL)]
)
@pytest.mark.parametrize('last', [SGD, optax.clip(0.01), optax.named_chain(('a', optax.scale(2.0)))])
def test_nothing_follows_what_synchronises_parameters(text: str, last: Any) -> None:
    update = optax.chain(build(text), last)
    with pytest.raises(ValueError, match='synchronises parameters, and a transformation after it would change them'):
        program_of(update)


@pytest.mark.parametrize(
    'update',
    [
        optax.chain(SGD, jaxdist.average(every=2)),
        optax.chain(SGD, optax.chain(jaxdist.average(every=2))),
        optax.chain(SGD, jaxdist.average(every=2), optax.identity()),
        optax.chain(SGD, jaxdist.average(every=2), harmless(optax.keep_params_nonnegative())),
        build('sgd(0.1) | average(every=2) | keep_params_nonnegative()'),
        optax.named_chain(('sgd', SGD), ('average', jaxdist.average(every=2))),
        optax.chain(jaxdist.mean(), SGD, optax.clip(0.1)),
    ],
)
def test_another_order_is_as_in_a_line(update: Any) -> None:
    program_of(update)


@pytest.mark.parametrize('last', [SGD, optax.clip(0.01)])
def test_nothing_follows_it_in_a_train_state(last: Any) -> None:
    with pytest.raises(ValueError, match='average synchronises parameters, and a transformation after it'):
        distributed(optax.chain(SGD, jaxdist.average(every=2), last), 'simulated')


def test_each_group_of_parameters_has_a_chain() -> None:
    """The states of `partition` are in a dict too, in which nothing follows on anything."""
    groups = {'a': optax.chain(SGD, jaxdist.average(every=2)), 'b': optax.chain(jaxdist.mean(), SGD)}
    program_of(optax.partition(groups, {'v': 'b', 'w': 'a'}), two=True)
    wrong = {'a': optax.chain(SGD, jaxdist.average(every=2), SGD), 'b': optax.chain(jaxdist.mean(), SGD)}
    with pytest.raises(ValueError, match='average synchronises parameters, and a transformation after it'):
        program_of(optax.partition(wrong, {'v': 'b', 'w': 'a'}), two=True)


def test_parameters_are_synchronised_once() -> None:
    with pytest.raises(ValueError, match='both synchronise the parameters'):
        program_of(optax.chain(SGD, jaxdist.parameter_server(optax.sgd(0.1)), jaxdist.average(every=2)))


def test_an_algorithm_of_ones_own_is_last_too() -> None:
    """It says that workers diverge, and nothing else."""
    inner = jaxdist.average(every=2)

    class OwnState(tuple):
        workers_diverge = True

    jax.tree_util.register_pytree_node(OwnState, lambda s: (tuple(s), None), lambda _, s: OwnState(s))

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        from jaxdist.core import collectives

        moved = jax.tree.map(lambda p, u: p + u, params, updates)
        mean = collectives.pmean(moved)
        return jax.tree.map(lambda m, p: pvary(m - p), mean, params), OwnState(state)

    own = optax.GradientTransformationExtraArgs(lambda params: OwnState((jnp.zeros(()),)), update)
    del inner
    program_of(optax.chain(SGD, own))
    with pytest.raises(ValueError, match='OwnState synchronises parameters'):
        program_of(optax.chain(SGD, own, optax.clip(0.01)))


def program_of(update: Any, two: bool = False) -> Any:
    """A step with a parameter `w`, and with another, `v`."""

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        del key
        return {'loss': sum(jnp.sum((batch['x'] @ p) ** 2) for p in params.values())}, len(batch['x'])

    params = {name: jnp.ones((3, 1)) for name in ('v', 'w')[1 - two :]}
    return make_step(loss, lambda key: params, update, batches()[0], simulated(W))
