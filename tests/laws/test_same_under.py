"""The law of layouts on jaxdist's models, and mutants that it finds."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jaxdist
from jaxdist.core.types import Batch, Model, Task
from jaxdist.models import ConvNet, MixtureTransformer, Perceptron, Transformer, _layers, experts
from jaxdist.models.attention import Attention, zigzag
from jaxdist.parallel import Experts, Sequences, fsdp

RNG = np.random.default_rng(0)
TOKENS = {'tokens': RNG.integers(0, 64, (16, 9)).astype(np.int32)}
CLASSES = {'x': RNG.normal(size=(16, 8, 8, 1)), 'y': RNG.integers(0, 3, 16), 'weight': RNG.random(16)}
HYBRIDS = [{'workers': 2, 'fsdp': 4}, {'workers': 2, 'fsdp': 2, 'model': 2}]


def transformer() -> Model:
    return Transformer(layers=1, width=16, heads=2).build(Task('tokens', (8,), 64))


MODELS: dict[str, tuple[Model, Batch]] = {
    'transformer': (transformer(), TOKENS),
    'perceptron': (Perceptron(hidden=(12, 8)).build(Task('classes', (8, 8, 1), 3)), CLASSES),
    'convnet': (ConvNet(channels=(4, 4), dense=8).build(Task('classes', (8, 8, 1), 3)), CLASSES),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_models_train_alike_under_every_layout(name: str) -> None:
    model, batch = MODELS[name]
    layouts = [{'workers': 2}, {'workers': 1, 'fsdp': 8}, *HYBRIDS, {'workers': 2, 'model': 2}]
    layouts = layouts if model.rules else layouts[:3]
    results = jaxdist.same_under(model, layouts, batch)
    assert [result.problem for result in results] == [''] * len(layouts)
    assert results[1].law == 'same under 1 workers x 8 fsdp'


@pytest.mark.slow
def test_parts_of_an_accumulation_are_gathered_once() -> None:
    model, batch = MODELS['perceptron']
    assert jaxdist.same_under(model, HYBRIDS[:1], batch, accumulate=2)[0].problem == ''


SHARED = {'width': 16, 'heads': 4, 'mlp': 1}
"""A transformer for sequences that devices share."""


@pytest.mark.slow
@pytest.mark.parametrize('attention', get_args(Attention))
def test_sequences_are_shared_under_every_other_axis(attention: Attention) -> None:
    task = Task('tokens', (8,), 64)
    grouped, stacked = (
        Transformer(**SHARED, **more).build(task)
        for more in ({'layers': 1, 'key_heads': 2 if attention != 'ulysses' else 4}, {'layers': 2, 'stacked': True})
    )
    layouts = [{'workers': 2, 'context': 4}, {'workers': 2, 'fsdp': 2, 'context': 2}]
    layouts += [{'workers': 2, 'context': 2, 'model': 2}]
    results = jaxdist.same_under(grouped, layouts, TOKENS, attention=attention)
    staged = [{'workers': 2, 'stage': 2, 'context': 2}, {'workers': 1, 'stage': 2, 'fsdp': 2, 'context': 2}]
    results += jaxdist.same_under(stacked, staged, TOKENS, attention=attention, microbatches=2)
    again = [{'workers': 2, 'fsdp': 2, 'context': 2}]
    results += jaxdist.same_under(stacked, again, TOKENS, attention=attention, regather=True)
    assert [result.problem for result in results] == [''] * 6


@pytest.mark.slow
@pytest.mark.parametrize('capacity', [1.0, 0.0])
def test_experts_are_divided_under_every_other_axis(capacity: float) -> None:
    sizes = {'width': 16, 'heads': 2, 'mlp': 1, 'experts': 4, 'capacity': capacity}
    model, two = (MixtureTransformer(layers=n, **sizes).build(Task('tokens', (8,), 64)) for n in (1, 2))
    layouts = [{'workers': 2, 'expert': 4}, {'workers': 2, 'fsdp': 2, 'expert': 2}]
    layouts.append({'workers': 2, 'expert': 2, 'model' if capacity else 'context': 2})
    results = jaxdist.same_under(model, layouts, TOKENS)
    results += jaxdist.same_under(two, [{'workers': 2, 'stage': 2, 'expert': 2}], TOKENS, microbatches=2)
    results += jaxdist.same_under(model, [{'workers': 2, 'fsdp': 2, 'expert': 2}], TOKENS, regather=True)
    assert [result.problem for result in results] == [''] * 5


EXPERT_MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    'balance is that of all sequences of a device': (
        experts,
        'balance_of',
        lambda p, expert: (4 * (p * p.mean((0, 1))).sum(-1), p.mean(1)),
        'loss is off',
    ),
    'tokens return to another device': (
        experts,
        '_exchanged',
        lambda rows, split, concat: (
            lax.ppermute(lax.all_to_all(rows, 'expert', split, concat, tiled=True), 'expert', [(0, 1), (1, 0)])
            if experts.devices() > 1 and split == 0
            else EXCHANGED(rows, split, concat)
        ),
        'loss is off',
    ),
    'the gradient of what all have is that of a device': (
        Experts,
        'scatter',
        lambda self, grads, key: jax.tree.map(
            lambda spec, g: g if 'expert' in spec else lax.pmean(g, 'expert'),
            self.specs,
            grads,
            is_leaf=lambda x: isinstance(x, P),
        ),
        'gradient of',
    ),
}
EXCHANGED = experts._exchanged


@pytest.mark.slow
@pytest.mark.parametrize('mutant', EXPERT_MUTANTS)
def test_mutants_of_experts_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, wrong, problem = EXPERT_MUTANTS[mutant]
    monkeypatch.setattr(place, attribute, wrong)
    settings = MixtureTransformer(layers=1, width=16, heads=2, mlp=1, experts=4)
    (result,) = jaxdist.same_under(settings.build(Task('tokens', (8,), 64)), [{'workers': 2, 'expert': 2}], TOKENS)
    assert problem in result.problem, result


def in_order(x: jax.Array, dim: int = 1) -> jax.Array:
    """Contiguous positions, where attention expects an early and a late piece."""
    n = zigzag.devices()
    rows = x.reshape(*x.shape[:dim], n, -1, *x.shape[dim + 1 :])
    return rows.take(lax.axis_index('context'), dim) if n > 1 else x


SEQUENCE_MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    'positions do not lie as attention expects': (_layers, 'local', in_order, 'loss is off'),
    'positions of all devices are those of the first': (_layers, 'positions', jnp.arange, 'loss is off'),
    'a gradient is that of a device': (
        Sequences,
        'scatter',
        lambda self, grads, key: lax.pmean(self.inner.scatter(grads, key), 'context'),
        'gradient of',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('mutant', SEQUENCE_MUTANTS)
def test_mutants_of_shared_sequences_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, wrong, problem = SEQUENCE_MUTANTS[mutant]
    monkeypatch.setattr(place, attribute, wrong)
    (result,) = jaxdist.same_under(transformer(), [{'workers': 2, 'context': 2}], TOKENS)
    assert problem in result.problem, result


def kept(g: jax.Array, spec: P, axis: str) -> jax.Array:
    """A gradient that is added up only where it is sharded."""
    return SCATTERED(g, spec, axis) if axis in spec else lax.pmean(g, axis)


def repeated(self: Any, evaluate: Any, params: Any, state: Any, batch: Any, key: Any, graded: bool = True) -> Any:
    """Every device evaluates the whole batch."""
    whole = jax.tree.map(lambda x: jnp.concatenate([x] * self.size), batch)
    return RUN(self, evaluate, params, state, whole, key, graded)


SCATTERED, RUN, GATHERED = fsdp.scattered, fsdp.FullySharded.run, fsdp.gathered
MUTANTS: dict[str, tuple[str, Any, str]] = {
    'the gradient of what is whole is not added up': ('scattered', kept, "gradient of 'x' is off"),
    'every device evaluates the whole batch': ('FullySharded.run', repeated, 'count is off'),
    'a gradient is off in the eleventh digit': (
        'scattered',
        lambda g, spec, axis: SCATTERED(g, spec, axis) * (1 + 1e-11),
        "gradient of 'w' is off",
    ),
    'a shard is taken for another': (
        'gathered',
        lambda x, spec, axis: jnp.roll(GATHERED(x, spec, axis), 1, 0) if axis in spec else x,
        'loss is off',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('mutant', MUTANTS)
def test_mutants_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, problem = MUTANTS[mutant]
    target, _, attribute = name.rpartition('.')
    monkeypatch.setattr(getattr(fsdp, target) if target else fsdp, attribute, wrong)
    init = lambda key: {'w': jax.random.normal(key, (8, 4)), 'x': jnp.ones(3)}  # noqa: E731

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        out = jnp.tanh(batch['x'] @ params['w']) @ jnp.ones(4) * params['x'].sum()
        return {'loss': jnp.sum((out - batch['y']) ** 2)}, out.shape[0]

    batch = {'x': RNG.normal(size=(8, 8)), 'y': RNG.normal(size=8)}
    (result,) = jaxdist.same_under(Model(init, loss), [{'workers': 2, 'fsdp': 2}], batch)
    assert problem in result.problem, result


def test_a_loss_with_noise_is_not_alike() -> None:
    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        noise = jax.random.normal(key, batch['x'].shape)
        return {'loss': jnp.sum((batch['x'] * noise - params['w'].sum()) ** 2)}, batch['x'].shape[0]

    model = Model(lambda key: {'w': jnp.ones(8)}, loss)
    (result,) = jaxdist.same_under(model, [{'workers': 1, 'fsdp': 2}], {'x': np.ones(8)})
    assert 'loss is off by' in result.problem


def test_a_layout_that_does_not_fit_is_refused() -> None:
    model, batch = MODELS['perceptron']
    with pytest.raises(
        ValueError, match='batch of 16 examples cannot be divided among 1 workers of 3 devices; 15 or 18'
    ):
        jaxdist.same_under(model, [{'workers': 1, 'fsdp': 3}], batch)
    with pytest.raises(ValueError, match='needs 16 devices, and there are 8'):
        jaxdist.same_under(model, [{'workers': 16}], batch)
    with pytest.raises(ValueError, match="there is no mesh axis 'fsd'; the axes are"):
        jaxdist.same_under(model, [{'fsd': 2}], batch)
