"""Models of flax modules with BatchNorm and dropout, against hand-written flax loops over workers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from step_fixtures import place

from jaxdist import build, make_step
from jaxdist.core.types import Task, Variables
from jaxdist.models import from_linen, from_nnx
from jaxdist.training.evaluation import evaluator
from jaxdist.training.step import shared_params

RATE, STEPS, ROWS = 0.1, 4, 64
TASK = Task('classes', (5,), 3)
PLACES = ('simulated', 'mesh')


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, drop: float = 0.0, axis: str | None = None) -> None:
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.8, axis_name=axis, rngs=rngs)
        self.drop = nnx.Dropout(drop, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.drop(nnx.relu(self.norm(self.first(x)))))


class LinenNet(linen.Module):
    drop: float = 0.0
    axis: str | None = None

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Dense(8)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.8, axis_name=self.axis)(x)
        x = linen.Dropout(self.drop, deterministic=not train)(linen.relu(x))
        return linen.Dense(3)(x)


def cross_entropy(outputs: jax.Array, batch: Any) -> Any:
    terms = optax.softmax_cross_entropy_with_integer_labels(outputs, batch['y'])
    return {'loss': terms.sum()}, len(batch['y'])


@functools.cache
def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    drawn = [(rng.normal(size=(ROWS, 5)), rng.integers(0, 3, ROWS)) for _ in range(STEPS)]
    return [{'x': np.float32(x), 'y': np.int32(y)} for x, y in drawn]


def parts(batch: Any, count: int) -> Any:
    return [jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:])[i], batch) for i in range(count)]  # noqa: B023


def mean(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: sum(x) / len(x), *trees)


def by_hand_nnx(count: int, local: bool) -> tuple[Any, Any]:
    """Parameters and running statistics, by flax alone: the mean over workers of each; or local SGD with a round every
    two steps, and statistics per worker.
    """
    models = [Net(nnx.Rngs(jax.random.key(0))) for _ in range(count)]

    @nnx.jit
    def gradient(model: Net, batch: Any) -> Any:
        return nnx.grad(lambda model: cross_entropy(model(batch['x']), batch)[0]['loss'] / len(batch['y']))(model)

    kinds: Any = (nnx.Param, nnx.BatchStat)
    for t, batch in enumerate(batches()):
        grads = [gradient(model, part) for model, part in zip(models, parts(batch, count), strict=True)]
        grads = grads if local else [mean(grads)] * count
        for model, grad in zip(models, grads, strict=True):
            params = jax.tree.map(lambda p, g: p - RATE * g, nnx.state(model, nnx.Param), nnx.state(grad, nnx.Param))
            nnx.update(model, params)
        for kind in kinds:
            if (not local) or (kind is nnx.Param and t % 2 == 1):
                whole = mean([nnx.state(model, kind) for model in models])
                for model in models:
                    nnx.update(model, whole)
    return tuple(nnx.to_pure_dict(mean([nnx.state(model, kind) for model in models])) for kind in kinds)


def by_hand_linen(count: int, local: bool) -> tuple[Any, Any]:
    """As `by_hand_nnx`, with Linen."""
    net = LinenNet()
    first = net.init(jax.random.key(0), jnp.zeros((1, 5)), train=True)
    workers = [dict(first) for _ in range(count)]

    @jax.jit
    def gradient(variables: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            all_variables = {**variables, 'params': params}
            out, after = net.apply(all_variables, batch['x'], train=True, mutable=['batch_stats'])
            return cross_entropy(out, batch)[0]['loss'] / len(batch['y']), after

        return jax.grad(loss, has_aux=True)(variables['params'])

    for t, batch in enumerate(batches()):
        results = [gradient(each, part) for each, part in zip(workers, parts(batch, count), strict=True)]
        grads = [g for g, _ in results] if local else [mean([g for g, _ in results])] * count
        stats = [s['batch_stats'] for _, s in results]
        params = [
            jax.tree.map(lambda p, g: p - RATE * g, each['params'], g) for each, g in zip(workers, grads, strict=True)
        ]
        params = [mean(params)] * count if local and t % 2 == 1 else params
        stats = stats if local else [mean(stats)] * count
        workers = [{'params': p, 'batch_stats': s} for p, s in zip(params, stats, strict=True)]
    return mean([each['params'] for each in workers]), mean([each['batch_stats'] for each in workers])


MODELS = {
    'nnx': (lambda **o: from_nnx(functools.partial(Net, **o), cross_entropy), by_hand_nnx),
    'linen': (lambda **o: from_linen(LinenNet(**o), cross_entropy, example=batches()[0]), by_hand_linen),
}
LINES = {False: f'mean() | sgd({RATE})', True: f'sgd({RATE}) | average(every=2)'}


def trained(model: Any, update: str, where: str, count: int, **options: Any) -> tuple[Any, Any]:
    program = make_step(model.loss, model.init, build(update), batches()[0], place(where, count), **options)
    state = program.init(jax.random.key(0))
    for batch in batches():
        state, _ = program.step(state, batch)
    return jax.device_get(shared_params(state, program.layout)), program


def close(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('local', [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize('count', [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(8, marks=pytest.mark.slow)])
def test_it_trains_like_a_loop_by_hand(kind: str, local: bool, count: int) -> None:
    make, by_hand = MODELS[kind]
    params, stats = by_hand(count, local)
    for where in PLACES:
        ours, _ = trained(make(), LINES[local], where, count)
        close(ours.params, params)
        close(ours.state if kind == 'nnx' else ours.state['batch_stats'], stats)


@pytest.mark.slow
@pytest.mark.parametrize('kind', MODELS)
def test_synchronised_statistics_are_those_of_one_worker(kind: str) -> None:
    make, by_hand = MODELS[kind]
    params, stats = by_hand(1, False)
    for where in PLACES:
        ours, program = trained(make(axis='workers'), LINES[False], where, 4)
        close(ours.params, params)
        close(ours.state if kind == 'nnx' else ours.state['batch_stats'], stats)
        assert not any(jax.tree.leaves(program.layout.model.values))


@pytest.mark.slow
@pytest.mark.parametrize('kind', MODELS)
def test_dropout_is_drawn_anew_and_off_in_evaluation(kind: str) -> None:
    model, batch = MODELS[kind][0](drop=0.5), batches()[0]
    variables = model.init(jax.random.key(0))
    one, same, other = (model.loss(variables, batch, jax.random.key(i))[0]['loss'] for i in (1, 1, 2))
    assert one == same
    assert one != other
    assert model.outputs is not None
    np.testing.assert_array_equal(model.outputs(variables, batch), model.outputs(variables, batch))
    plain = MODELS[kind][0]()
    np.testing.assert_allclose(model.outputs(variables, batch), plain.outputs(variables, batch), rtol=1e-6)
    update, losses = f'mean() | sgd({RATE})', []
    for where in PLACES:
        ours, _ = trained(model, update, where, 4)
        losses.append(ours)
    close(*losses)


@pytest.mark.parametrize('kind', MODELS)
def test_evaluation_uses_running_statistics(kind: str) -> None:
    model, batch = MODELS[kind][0](), batches()[0]
    variables = model.init(jax.random.key(0))
    sums, count = model.evaluate(variables, batch)
    stats = variables.state['norm'] if kind == 'nnx' else variables.state['batch_stats']['BatchNorm_0']
    np.testing.assert_array_equal(stats['mean'], 0)
    one = model.evaluate(variables, jax.tree.map(lambda x: x[:1], batch))[0]['loss']
    each = [model.evaluate(variables, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))[0]['loss'] for i in range(ROWS)]
    assert one == each[0]
    np.testing.assert_allclose(sum(each), sums['loss'], rtol=1e-5)
    assert count == ROWS


@pytest.mark.parametrize('kind', MODELS)
def test_a_task_brings_its_loss_and_accuracy(kind: str) -> None:
    model = from_nnx(Net, TASK) if kind == 'nnx' else from_linen(LinenNet(), TASK)
    variables = model.init(jax.random.key(0))
    sums, count, _ = evaluator(model)(variables, batches()[0])
    assert sorted(sums) == ['accuracy', 'loss']
    assert model.metrics['accuracy'].better == 'higher'
    right = model.outputs(variables, batches()[0]).argmax(-1) == batches()[0]['y']
    assert float(sums['accuracy']) == right.sum()
    assert count == ROWS


def test_a_module_without_state_is_a_model_without_state() -> None:
    model = from_linen(linen.Dense(3), TASK)
    assert sorted(model.init(jax.random.key(0))) == ['bias', 'kernel']
    other = from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs), TASK)
    assert sorted(other.init(jax.random.key(0))) == ['bias', 'kernel']
    for each in (model, other):
        assert not isinstance(trained(each, LINES[False], 'simulated', 2)[0], Variables)


def test_frozen_variables_are_neither_trained_nor_sent() -> None:
    """Only the head is trained; what is frozen is the same on all workers, and no byte of it is sent."""
    model = from_nnx(lambda rngs: Net(rngs), cross_entropy, trained=nnx.All(nnx.Param, nnx.PathContains('head')))
    start = model.init(jax.random.key(0))
    ours, program = trained(model, LINES[False], 'mesh', 4)
    assert sorted(ours.params) == ['head']
    for name in ('kernel', 'bias'):
        np.testing.assert_array_equal(ours.state['first'][name], start.state['first'][name])
    assert not any(jax.tree.leaves(program.layout.model.values))


def test_without_a_shape_linen_is_refused() -> None:
    with pytest.raises(ValueError, match='give example='):
        from_linen(LinenNet(), cross_entropy)
