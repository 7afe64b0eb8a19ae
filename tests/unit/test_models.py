"""Models: against NumPy references, as sums and counts, sharded over a mesh, in bfloat16, and learning."""

import re
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist.core import mesh
from jaxdist.core.types import Batch, Model, Params, Task
from jaxdist.data import Digits, Text
from jaxdist.models import Architecture, ConvNet, Perceptron, Transformer, score, scoring

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
TOKENS = Task('tokens', (12,), 40)
IMAGES = Task('classes', (7, 8, 2), 5)
TABLE = Task('classes', (6,), 3)
VALUES = Task('values', (6,), 1)
PAIRS = [
    (Transformer(layers=1, width=32, heads=2), TOKENS),
    (ConvNet(channels=(4, 6), dense=16), IMAGES),
    (Perceptron(hidden=(8, 8)), IMAGES),
    (Perceptron(hidden=()), TABLE),
    (Perceptron(), VALUES),
]
DEEP = (Transformer(layers=2, width=16, heads=2), TOKENS)
pairs = pytest.mark.parametrize('architecture, task', PAIRS)


def batch_of(task: Task, size: int = 8, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    if task.kind == 'tokens':
        return {'tokens': rng.integers(0, task.classes, (size, task.shape[0] + 1)).astype(np.int32)}
    x = rng.normal(size=(size, *task.shape)).astype(np.float32)
    if task.kind == 'values':
        return {'x': x, 'y': rng.normal(size=size).astype(np.float32)}
    return {'x': x, 'y': rng.integers(0, task.classes, size).astype(np.int32)}


@cache
def prepared(architecture: Architecture, task: Task) -> tuple[Model, Params, Batch]:
    """The model with its loss jitted, its parameters, and a batch."""
    model = architecture.build(task)
    return model._replace(loss=jax.jit(model.loss)), jax.jit(model.init)(KEY), batch_of(task)


@cache
def gradient(architecture: Architecture, task: Task) -> Callable[[Params, Batch], Params]:
    model = architecture.build(task)
    return jax.jit(jax.grad(lambda params, batch: model.loss(params, batch, KEY)[0]['loss']))


def outputs(architecture: Architecture, task: Task, monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """`(params, batch) -> outputs`: the model's outputs, as its loss gets them."""
    monkeypatch.setattr(scoring, 'score', lambda task, outputs, targets, weight: outputs)
    loss = jax.jit(architecture.build(task).loss)
    return lambda params, batch: np.asarray(loss(params, batch, KEY))


def rms(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def reference_transformer(p: Params, tokens: np.ndarray, layers: int) -> np.ndarray:
    """Reference logits in float64, one row, head and position at a time, with rotary positions as complex numbers."""
    x = p['embed']['embedding'][tokens]
    length = x.shape[1]
    for layer in range(layers):
        block = p[f'block{layer}']
        y = rms(x, block['norm_attention']['scale'])
        q, k, v = np.moveaxis(np.einsum('btd,dchk->btchk', y, block['qkv']['kernel']), 2, 0)
        half = q.shape[-1] // 2
        rotation = np.exp(1j * np.arange(length)[:, None, None] * 10000.0 ** (-np.arange(half) / half))
        q, k = ((a[..., :half] + 1j * a[..., half:]) * rotation for a in (q, k))
        mixed = np.zeros_like(v)
        for b, t, h in np.ndindex(*v.shape[:3]):
            scores = (k[b, : t + 1, h].conj() @ q[b, t, h]).real / np.sqrt(2 * half)
            weights = np.exp(scores - scores.max())
            mixed[b, t, h] = weights / weights.sum() @ v[b, : t + 1, h]
        x = x + np.einsum('bthk,hkd->btd', mixed, block['proj']['kernel'])
        y = rms(x, block['norm_mlp']['scale']) @ block['up']['kernel']
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ block['down']['kernel']
    return rms(x, p['norm']['scale']) @ p['embed']['embedding'].T


def test_transformer_equals_the_reference(monkeypatch):
    _, params, batch = prepared(*DEEP)
    params = jax.tree.map(lambda a: 3 * np.asarray(a, np.float64), params)  # attention far from uniform
    expected = reference_transformer(params, batch['tokens'][:, :-1], layers=2)
    logits = outputs(*DEEP, monkeypatch)(jax.tree.map(np.float32, params), batch)
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_a_later_token_does_not_change_earlier_predictions(monkeypatch):
    _, params, batch = prepared(*DEEP)
    logits = outputs(*DEEP, monkeypatch)
    changed = batch['tokens'].copy()
    changed[:, 7] = (changed[:, 7] + 1) % TOKENS.classes
    before, after = logits(params, batch), logits(params, {'tokens': changed})
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(axis=(0, 2)).all()


def test_convnet_equals_convolutions(monkeypatch):
    _, params, batch = prepared(*PAIRS[1])
    x = jnp.asarray(batch['x'])
    for layer in range(2):
        kernel, bias = params[f'conv{layer}']['kernel'], params[f'conv{layer}']['bias']
        kernel = kernel.reshape(3, 3, -1, kernel.shape[-1])
        dims = ('NHWC', 'HWIO', 'NHWC')
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=dims) + bias
        x = jnp.maximum(x, 0)
    x = jnp.maximum(x.reshape(len(x), -1) @ params['dense']['kernel'] + params['dense']['bias'], 0)
    expected = x @ params['head']['kernel'] + params['head']['bias']
    np.testing.assert_allclose(outputs(*PAIRS[1], monkeypatch)(params, batch), expected, atol=1e-5)


def test_losses_equal_their_formulas():
    model, params, batch = prepared(Perceptron(hidden=()), VALUES)
    sums, count = model.loss(params, batch, KEY)
    errors = batch['x'] @ np.asarray(params['head']['kernel'])[:, 0] - batch['y']
    assert set(sums) == {'loss'}
    assert float(sums['loss']) == pytest.approx(0.5 * np.square(errors).sum(), rel=1e-5)
    assert float(count) == 8
    logits, labels = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 5.0]]), np.array([0, 1])
    sums, count = score(TABLE, logits, jnp.asarray(labels), jnp.array([3.0, 1.0]))
    each = np.log(np.exp(logits).sum(1)) - logits[[0, 1], labels]
    assert float(sums['loss']) == pytest.approx(3 * each[0] + each[1], rel=1e-5)
    assert (float(sums['accuracy']), float(count)) == (3.0, 4.0)


@pytest.mark.parametrize('architecture, task', PAIRS[:4])
def test_the_first_loss_is_that_of_a_uniform_prediction(architecture: Architecture, task: Task):
    model, params, _ = prepared(architecture, task)
    batch = batch_of(task, size=64)
    batch |= {'x': 0.1 * batch['x']} if 'x' in batch else {}
    sums, count = model.loss(params, batch, KEY)
    assert float(sums['loss'] / count) == pytest.approx(np.log(task.classes), abs=0.1)


@pairs
def test_every_parameter_gets_a_finite_gradient(architecture: Architecture, task: Task):
    _, params, batch = prepared(architecture, task)
    grads = gradient(architecture, task)(params, batch)
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pairs
def test_sums_over_two_halves_add_up_to_the_whole(architecture: Architecture, task: Task):
    model, params, batch = prepared(architecture, task)
    whole = model.loss(params, batch, KEY)
    halves = [model.loss(params, {k: v[i : i + 4] for k, v in batch.items()}, KEY) for i in (0, 4)]
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, sum(b), rtol=1e-5), whole, *halves)


@pairs
def test_an_integer_weight_equals_repeating_the_example(architecture: Architecture, task: Task):
    model, params, batch = prepared(architecture, task)
    times = np.array([0, 1, 2, 3, 0, 1, 1, 0])
    weighted = model.loss(params, {**batch, 'weight': times.astype(np.float32)}, KEY)
    repeated = model.loss(params, {k: np.repeat(v, times, axis=0) for k, v in batch.items()}, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), weighted, repeated)


@pairs
def test_the_count_is_typed_as_replicated_unless_weighted(architecture: Architecture, task: Task):
    model, params, batch = prepared(architecture, task)
    workers = mesh.make({'workers': 4})

    def count(batch: Batch) -> jax.Array:
        over = jax.shard_map(
            lambda b: model.loss(params, b, KEY)[1],
            mesh=workers,
            in_specs=jax.P('workers'),
            out_specs=jax.P(),
        )
        return jax.jit(over)(batch)

    assert float(count(batch)) == 2 * (task.shape[0] if task.kind == 'tokens' else 1)
    with pytest.raises(ValueError, match='out_specs'):
        count({**batch, 'weight': np.ones(8, np.float32)})


@pairs
def test_bfloat16_parameters_compute_in_bfloat16_and_sum_in_float32(architecture: Architecture, task: Task):
    model, params, batch = prepared(architecture, task)
    half = jax.tree.map(lambda p: np.asarray(p).astype(jnp.bfloat16), params)
    exact, rounded = (model.loss(p, batch, KEY) for p in (params, half))
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype('float32')}
    np.testing.assert_allclose(rounded[0]['loss'], exact[0]['loss'], rtol=0.05)
    grads = gradient(architecture, task)(half, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype('bfloat16')}
    products = re.findall(r'dot_general.*: \(tensor<\S*x(\w+)>', jax.jit(model.loss).lower(half, batch, KEY).as_text())
    heads = 0 if isinstance(architecture, Transformer) else 1  # small heads multiply in float32
    assert products == ['bf16'] * (len(products) - heads) + ['f32'] * heads
    assert len(products) == len([p for p in jax.tree.leaves(params) if p.ndim > 1]) + 2 * (task == TOKENS)


@pytest.mark.parametrize('architecture, task', [PAIRS[0], PAIRS[1], PAIRS[2], PAIRS[4]])
def test_sharding_over_a_model_axis_gives_the_same_with_one_all_reduce_per_pair(architecture: Architecture, task: Task):
    model, params, batch = prepared(architecture, task)
    devices = mesh.make({'model': 2})
    specs = mesh.specs(params, model.rules, devices)
    sharded = jax.device_put(params, jax.tree.map(lambda s: jax.NamedSharding(devices, s), specs))
    compiled = jax.jit(model.loss).lower(sharded, batch, KEY).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        compiled(sharded, batch, KEY),
        model.loss(params, batch, KEY),
    )
    names = re.findall(r'= \S+ (all-\S+|collective-\S+|reduce-scatter)\(', compiled.as_text())
    pairs_of_matrices = 2 if isinstance(architecture, Transformer) else 1
    assert names == ['all-reduce'] * pairs_of_matrices


def test_simulated_workers_with_different_weights_need_no_convolution():
    model = ConvNet().build(IMAGES)
    params = jax.eval_shape(jax.vmap(model.init), jax.random.split(KEY, 4))
    batch = jax.tree.map(lambda *x: np.stack(x), *(batch_of(IMAGES, seed=s) for s in range(4)))
    text = str(jax.make_jaxpr(jax.vmap(model.loss, in_axes=(0, 0, None)))(params, batch, KEY))
    assert 'conv_general' not in text


@pytest.mark.parametrize(
    'architecture, task, message',
    [
        (Transformer(), IMAGES, 'Transformer needs tokens.*use ConvNet or Perceptron'),
        (Transformer(), TABLE, 'Transformer needs tokens.*use Perceptron'),
        (ConvNet(), TOKENS, r'ConvNet needs images \[H, W, C\].*tokens.*use Transformer'),
        (ConvNet(), TABLE, r'shape \(6,\): use Perceptron'),
        (Perceptron(), TOKENS, 'Perceptron needs classes or values.*use Transformer'),
        (Transformer(width=100, heads=3), TOKENS, 'width 100 .* 3 heads.*multiple of 6'),
        (Transformer(layers=0), TOKENS, 'must be 1 or more'),
        (ConvNet(channels=(0,)), IMAGES, 'must be 1 or more'),
        (Perceptron(hidden=(4, 0)), TABLE, 'must have 1 entry or more'),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_refused(architecture: Architecture, task: Task, message: str):
    with pytest.raises(ValueError, match=message):
        architecture.build(task)


def fitted(model: Model, batches: list[Batch], learning_rate: float) -> Params:
    """Parameters after one step of Adam for each batch."""
    tx = optax.adam(learning_rate)

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(lambda p: model.loss(p, batch, KEY)[0]['loss'] / len(batch[next(iter(batch))]))(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    def fit(batches):
        params = model.init(KEY)
        return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]

    return jax.jit(fit)(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))


@pytest.mark.parametrize('architecture', [Perceptron(), ConvNet()])
def test_digits_are_learnt(architecture: Architecture):
    data = Digits().load()
    model = architecture.build(data.task)
    params = fitted(model, [data.batch(0, step, 64, 1) for step in range(150)], 5e-3)
    (held,) = data.held_out(359)
    sums, count = jax.jit(model.loss)(params, held, KEY)
    assert float(sums['accuracy'] / count) > 0.95
    assert float(sums['loss'] / count) < 0.1 * data.baseline


def test_text_is_learnt_better_than_its_histogram():
    data = Text(context=32).load()
    model = Transformer(layers=1, width=32, heads=2).build(data.task)
    params = fitted(model, [data.batch(0, step, 8, 1) for step in range(120)], 2e-2)
    sums, count = jax.jit(model.loss)(params, next(data.held_out(128)), KEY)
    assert float(sums['loss'] / count) < data.baseline - 0.2
