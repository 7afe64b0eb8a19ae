"""Gathers and scatters through codecs: against a loop over devices, their bytes, and what is refused."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist
from jaxdist import by_size, int4, int8, ledger, majority, power_sgd, qsgd
from jaxdist.core import mesh
from jaxdist.core.types import Task
from jaxdist.models import Transformer
from jaxdist.parallel import Fsdp, Pipeline
from jaxdist.training.step import partitioned

RNG = np.random.default_rng(0)
F = 4
SLOW = pytest.mark.slow
W = RNG.normal(size=(8, 24)).astype(np.float32)
BATCH = {'x': RNG.normal(size=(16, 8)).astype(np.float32), 'y': RNG.normal(size=(16, 24)).astype(np.float32)}


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    out = jnp.tanh(batch['x'] @ params['w']) + params['b'].sum()
    return {'loss': 0.5 * jnp.sum((out - batch['y']) ** 2)}, batch['x'].shape[0]


def start(key: jax.Array) -> Any:
    return {'w': jnp.asarray(W), 'b': jnp.ones(3)}


def on(**axes: int) -> Any:
    return jaxdist.on_mesh(mesh.make(mesh.axis_table(**axes)))


def step(how: Fsdp, init: Any = start, **axes: int) -> Any:
    """The gradient of the first step, and the program."""
    update = optax.chain(jaxdist.mean(), optax.trace(0.0))
    made = jaxdist.make_step(loss, init, update, BATCH, on(**axes), fsdp=how)
    state = made.step(made.init(jax.random.key(0)), BATCH)[0]
    return jax.device_get(jax.block_until_ready(state).opt_state[1].trace), made


def coded(codec: Any, x: np.ndarray) -> np.ndarray:
    """A tensor as it is decoded, of a codec without noise."""
    flat = np.pad(x.ravel(), (0, -x.size % codec.block))
    decoded = codec.decode(codec.encode(jnp.asarray(flat), jax.random.key(0)), flat.size)
    return np.asarray(decoded)[: x.size].reshape(x.shape)


@pytest.mark.parametrize(
    'gathers, scatters',
    [
        (int8(block=16), int4(block=8)),
        pytest.param(int8(), None, marks=SLOW),
        pytest.param(None, int4(), marks=SLOW),
    ],
)
def test_a_step_is_that_of_a_loop_over_devices(gathers: Any, scatters: Any) -> None:
    parts = np.split(W, F, axis=1)  # along its largest dim
    whole = np.concatenate([coded(gathers, part) for part in parts] if gathers else parts, axis=1)
    grads = []
    for device in range(F):
        rows = {name: x[4 * device : 4 * device + 4] for name, x in BATCH.items()}
        grads.append(jax.grad(lambda p: loss(p, rows, None)[0]['loss'])({'w': whole, 'b': np.ones(3, np.float32)}))  # noqa: B023
    shards = []
    for to in range(F):
        pieces = [np.split(np.asarray(g['w']), F, axis=1)[to] for g in grads]
        sent = [coded(scatters, p) if scatters and n != to else p for n, p in enumerate(pieces)]
        shards.append(sum(sent))
    actual, _ = step(Fsdp(gathers=gathers, scatters=scatters), workers=1, fsdp=F)
    np.testing.assert_allclose(actual['w'], np.concatenate(shards, axis=1) / 16, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(actual['b'], sum(np.asarray(g['b']) for g in grads) / 16, rtol=2e-5)


MODEL = Transformer(layers=2, width=64, heads=2).build(Task('tokens', (8,), 128))
TOKENS = {'tokens': RNG.integers(0, 128, (16, 9)).astype(np.int32)}


@pytest.mark.slow
@pytest.mark.parametrize('axes', [{'workers': 2, 'fsdp': 4}, {'workers': 2, 'fsdp': 2, 'model': 2}])
def test_bytes_are_those_of_the_formula(axes: dict[str, int]) -> None:
    fsdp, workers = Fsdp(gathers=int8(block=64), scatters=by_size(large=int4(block=64), below=64)), on(**axes)
    update = optax.chain(jaxdist.mean(), optax.sgd(0.1))
    made = jaxdist.make_step(MODEL.loss, MODEL.init, update, TOKENS, workers, rules=MODEL.rules, guard=False, fsdp=fsdp)
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    partition = partitioned(params, MODEL.rules, workers, fsdp=fsdp)[1]
    formula = partition.sends(MODEL.loss, params, TOKENS, dict(workers.mesh.shape))['fsdp']
    rows = [row for row in ledger.cost(made, TOKENS, jax.random.key(0)).rows if row.axes == ('fsdp',)]
    assert sum(row.bytes_per_step for row in rows) == formula
    exact = partitioned(params, MODEL.rules, workers)[1].sends(MODEL.loss, params, TOKENS, dict(workers.mesh.shape))[
        'fsdp'
    ]
    assert Fraction(1, 8) < formula / exact < Fraction(1, 3)
    compiled = made.step.lower(made.state, TOKENS).compile()
    sent = sum(row.sent for row in ledger.compiled(compiled, workers.mesh) if row.axes == ('fsdp',))
    assert sent == formula


@pytest.mark.slow
def test_training_goes_on_nearly_as_without() -> None:
    def trained(fsdp: Fsdp) -> float:
        update = optax.chain(jaxdist.mean(), optax.sgd(0.5))
        made = jaxdist.make_step(MODEL.loss, MODEL.init, update, TOKENS, on(workers=2, fsdp=4), fsdp=fsdp)
        state = made.init(jax.random.key(0))
        for _ in range(20):
            state, metrics = jax.block_until_ready(made.step(state, TOKENS))
        return jaxdist.means(metrics)['loss']

    exact, near = trained(Fsdp()), trained(Fsdp(gathers=int8(), scatters=int4()))
    assert exact < 4.5
    assert near == pytest.approx(exact, rel=0.1)
    assert near != exact


def test_noise_differs_between_steps_and_devices() -> None:
    """The same shard on every device is rounded in several ways, and in others in the next step."""

    def same(key: jax.Array) -> Any:
        return {'w': jnp.tile(jnp.asarray(W[:, :6]), (1, F)), 'b': jnp.ones(3)}

    first, made = step(Fsdp(gathers=qsgd(bits=2, block=48)), same, workers=1, fsdp=F)
    seen = {x.tobytes() for x in np.split(first['w'], F, axis=1)}
    assert len(seen) == F
    state = made.init(jax.random.key(0))._replace(step=jnp.int32(1))
    again = jax.block_until_ready(
        made.step(jax.device_put(state, jax.tree.map(lambda x: x.sharding, made.state)), BATCH)[0]
    )
    assert not np.allclose(again.opt_state[1].trace['w'], first['w'])


@pytest.mark.parametrize(
    'fsdp, axes, problem',
    [
        (Fsdp(gathers=power_sgd(rank=1)), {'fsdp': 4}, 'gathers takes a codec of messages that add up, such as int8'),
        (Fsdp(scatters=majority()), {'fsdp': 4}, 'scatters takes a codec of messages that add up'),
        (Fsdp(gathers=int8), {'fsdp': 4}, 'int8 is no codec: call it'),
        (Fsdp(gathers=int8()), {'workers': 2}, 'codecs of gathers and scatters are for a mesh with the axis fsdp'),
        (Fsdp(regather=True, gathers=int8()), {'fsdp': 4}, 'regather is for a mesh .* without codecs of gathers'),
    ],
)
def test_what_does_not_go_together(fsdp: Any, axes: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        step(fsdp, **axes)


def test_stages_are_not_encoded() -> None:
    model = Transformer(layers=2, width=16, heads=2, stacked=True).build(Task('tokens', (8,), 128))
    update, fsdp = optax.chain(jaxdist.mean(), optax.sgd(0.1)), Fsdp(gathers=int8())
    with pytest.raises(ValueError, match='without stages'):
        jaxdist.make_step(
            model.loss, model.init, update, TOKENS, on(stage=2, fsdp=2), fsdp=fsdp, pipeline=Pipeline(model.parts)
        )
