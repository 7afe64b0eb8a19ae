"""Mixtures of experts beside loops over tokens in NumPy: outputs, gradients, what is dropped, bytes, refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxdist
from jaxdist import ledger
from jaxdist.core import mesh as meshes
from jaxdist.core.types import Task
from jaxdist.models import MixtureTransformer, Transformer
from jaxdist.models.experts import Product, mixture, sends
from jaxdist.training.step import shared_params

B, T, D, H, N = 4, 12, 5, 7, 4
TASK = Task('tokens', (8,), 64)
TOKENS = {'tokens': np.random.default_rng(0).integers(0, 64, (16, 9)).astype(np.int32)}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {'x': (B, T, D), 'logits': (B, T, N), 'up': (N, D, H), 'down': (N, H, D)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def loops(x: Any, logits: Any, up: Any, down: Any, choices: int, capacity: float | None) -> tuple[Any, Any, Any]:
    """One choice after the other, of each token of each sequence: outputs, balance losses and dropped shares."""
    y, dropped, balance = np.zeros_like(x), np.zeros((B, T)), np.zeros((B, T))
    room = T if capacity is None else int(np.ceil(capacity * choices * T / N))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for b in range(B):
        taken, wanted = [0] * N, [0] * N
        order = [np.argsort(-p[b, t], kind='stable')[:choices] for t in range(T)]
        for rank in range(choices):
            for t in range(T):
                n = order[t][rank]
                wanted[n] += 1
                if taken[n] == room:
                    dropped[b, t] += 1 / choices
                    continue
                taken[n] += 1
                gate = p[b, t, n] if choices == 1 else p[b, t, n] / p[b, t, order[t]].sum()
                y[b, t] += gate * (np.tanh(x[b, t] @ up[n]) @ down[n] + 0.5)
        balance[b] = N * (p[b] * np.array(wanted) / (choices * T)).sum(-1)
    return y, balance, dropped


def mixed(args: dict[str, Any], choices: int, capacity: float | None) -> Any:
    def expert(rows: jax.Array, product: Product) -> jax.Array:
        return product(jnp.tanh(product(rows, args['up'])), args['down']) + 0.5  # also of rows that are nobody's

    return mixture(args['x'], args['logits'], expert, choices=choices, capacity=capacity)


ROUTES = [(1, 1.0), (1, None), (2, 0.75), (2, 1.25), (2, None), (3, 1.0)]


@pytest.mark.parametrize(
    'choices, capacity', [pytest.param(*each, marks=[pytest.mark.slow] * (each != (2, 0.75))) for each in ROUTES]
)
def test_outputs_are_those_of_the_loops(choices: int, capacity: float | None) -> None:
    with jax.enable_x64(True):
        got = jax.device_get(mixed({name: jnp.asarray(x) for name, x in arrays().items()}, choices, capacity))
    for a, b in zip(got, loops(**arrays(), choices=choices, capacity=capacity), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    assert (np.sum(got.dropped) > 0) == (capacity is not None)


@pytest.mark.slow
@pytest.mark.parametrize('capacity', [1.0, None])
def test_gradients_are_those_of_differences(capacity: float | None) -> None:
    """Of a step so small that no token changes its expert."""
    with jax.enable_x64(True):
        args = {name: jnp.asarray(x) for name, x in arrays().items()}
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)))
        value = lambda args: jnp.sum(mixed(args, 2, capacity).y * weights)  # noqa: E731
        grads = jax.grad(value)(args)
        for name, x in args.items():
            along = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
            step = lambda e, name=name, x=x, along=along: value({**args, name: x + e * along})  # noqa: E731
            np.testing.assert_allclose(jnp.sum(grads[name] * along), (step(1e-6) - step(-1e-6)) / 2e-6, rtol=1e-6)


def divided(capacity: float | None, size: int) -> tuple[Any, dict[str, int], Any]:
    """The outputs and gradients on a mesh of experts, and the bytes of the compiled program."""
    mesh = meshes.make({'workers': 1, 'expert': size})
    specs = {'x': P('expert'), 'logits': P('expert'), 'up': P('expert'), 'down': P('expert')}

    def on_device(args: Any) -> Any:
        value = lambda args: (jnp.sum(mixed(args, 2, capacity).y ** 2), mixed(args, 2, capacity).y)  # noqa: E731
        return jax.grad(value, has_aux=True)(args)

    def worker(args: Any) -> Any:
        return jax.shard_map(on_device, in_specs=(specs,), out_specs=(specs, P('expert')), axis_names={'expert'})(args)

    code = jax.shard_map(worker, mesh=mesh, in_specs=P(), out_specs=P(), axis_names={'workers'})
    args = {name: x.astype(np.float32) for name, x in arrays().items()}
    compiled = jax.jit(code).lower(args).compile()
    kinds: dict[str, int] = {}
    for row in ledger.compiled(compiled, mesh):
        if row.axes == ('expert',):
            kinds[row.kind] = kinds.get(row.kind, 0) + int(row.sent)
    whole = lambda args: (jnp.sum(mixed(args, 2, capacity).y ** 2), mixed(args, 2, capacity).y)  # noqa: E731
    return (compiled(args), jax.grad(whole, has_aux=True)(args)), kinds, args


@pytest.mark.slow
@pytest.mark.parametrize('capacity', [1.0, None])
def test_experts_on_four_devices_are_those_on_one(capacity: float | None) -> None:
    (got, want), kinds, _ = divided(capacity, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)
    room = 4 * (B // 4) * N * 6 * D
    tokens, choices = 4 * (B // 4) * T * D, 4 * (B // 4) * T * 2
    if capacity is not None:
        assert kinds == {'all_to_all': sum(sends('to_rooms', 4, [room]))}
    else:
        assert sum(kinds.values()) == sum(sends('as_rows', 4, [tokens, choices, choices]))


@pytest.mark.parametrize(
    'options, message',
    [
        ({'choices': 5}, 'goes to 5 of 4 experts: choose 1 to 4'),
        ({'choices': 0}, 'goes to 0 of 4 experts: choose 1 to 4'),
    ],
)
def test_choices_that_do_not_fit_are_refused(options: Any, message: str) -> None:
    args = arrays()
    with pytest.raises(ValueError, match=message):
        mixture(args['x'], args['logits'], lambda rows, product: rows, **options)


SMALL = MixtureTransformer(layers=1, width=16, heads=2, mlp=1, experts=4)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'choices': 9}, 'choices=9: a token goes to 1 to 8 experts'),
        ({'capacity': -1.0}, r'capacity=-1.0 and balance=0.01 must be 0 or more'),
        ({'width': 100, 'heads': 3}, 'width 100 cannot be split into 3 heads'),
        ({'layers': 0}, 'every size of a MixtureTransformer must be 1 or more'),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureTransformer(**settings).build(TASK)


def step(settings: Any, update: str = 'mean() | sgd(0.1)', **axes: int) -> Any:
    model, workers = settings.build(TASK), jaxdist.on_mesh(meshes.make(meshes.axis_table(**axes)))
    rules = model.rules if len(axes) > 1 else ()
    return jaxdist.make_step(model.loss, model.init, jaxdist.build(update), TOKENS, workers, rules=rules)


@pytest.mark.slow
@pytest.mark.parametrize(
    'update',
    [
        'sgd(0.1) | diloco(every=2, outer=sgd(0.7, momentum=0.9))',
        'delay(steps=1) | mean(codec=int8()) | sgd(0.1)',
        'parameter_server(optimizer=sgd(0.1, momentum=0.5))',
    ],
)
def test_algorithms_act_between_workers_with_experts(update: str) -> None:
    def trained(**axes: int) -> Any:
        program = step(SMALL, update, **axes)
        state = program.init(jax.random.key(0))
        for _ in range(4):
            state, _ = jax.block_until_ready(program.step(state, TOKENS))
        return jax.device_get(shared_params(state, program.layout))

    # Blocks of a codec begin anew in each shard.
    near = {'rtol': 1e-2, 'atol': 2e-3} if 'int8' in update else {'rtol': 1e-4, 'atol': 1e-5}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **near), trained(workers=2, expert=4), trained(workers=2)
    )


@pytest.mark.parametrize(
    'settings, axes, message',
    [
        (SMALL, {'workers': 1, 'expert': 8}, "'expert' of size 8 does not divide"),
        (Transformer(layers=1, width=16, heads=2), {'workers': 2, 'expert': 2}, "over mesh axis 'expert', which has 2"),
        (SMALL, {'workers': 2, 'context': 2}, r"that of a sequence, which devices of mesh axis 'context' share"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(settings: Any, axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step(settings, **axes)


@pytest.mark.slow
def test_the_held_out_loss_has_no_balance() -> None:
    model = SMALL.build(TASK)
    params = model.init(jax.random.key(0))
    assert model.evaluate is not None
    sums, count = model.loss(params, TOKENS, None)
    plain, same = model.evaluate(params, TOKENS)
    assert count == same == 128
    np.testing.assert_allclose(sums['loss'] - plain['loss'], 0.01 * sums['balance'], rtol=1e-3)
    assert 0.9 < float(sums['balance'] / count) < 2
    weighted, _ = model.loss(params, {**TOKENS, 'weight': np.float32([2] * 16)}, None)
    np.testing.assert_allclose(weighted['loss'], 2 * sums['loss'], rtol=1e-5)


@pytest.mark.slow
def test_experts_learn_and_share_the_tokens() -> None:
    """On sequences that repeat themselves."""
    program = step(MixtureTransformer(layers=1, width=16, heads=2, mlp=1, experts=4, balance=0.1), workers=2, expert=4)
    batch = {'tokens': np.tile(np.arange(9, dtype=np.int32), (16, 1)) + np.arange(16, dtype=np.int32)[:, None]}
    state, losses = program.init(jax.random.key(0)), []
    for _ in range(40):
        state, metrics = jax.block_until_ready(program.step(state, batch))
        losses.append(jaxdist.means(metrics))
    assert losses[-1]['loss'] < 0.8 * losses[0]['loss']
    assert losses[-1]['balance'] < 1.5
