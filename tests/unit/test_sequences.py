"""Devices that share sequences: refusals, algorithms between workers, users' modules, runs that go on."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from run_fixtures import finish, losses

import jaxdist
from jaxdist.constraints import LagrangianObjective, inequality
from jaxdist.core import mesh
from jaxdist.core.types import Task
from jaxdist.data import Text
from jaxdist.models import Transformer, from_linen
from jaxdist.models.attention import attend, local
from jaxdist.parallel.within import on_devices
from jaxdist.training.experiment import ContextSettings, Experiment, Mesh
from jaxdist.training.step import shared_params

TASK = Task('tokens', (8,), 64)
MODEL = Transformer(layers=1, width=16, heads=4).build(TASK)
TOKENS = {'tokens': np.random.default_rng(0).integers(0, 64, (16, 9)).astype(np.int32)}


def on(**axes: int) -> Any:
    return jaxdist.on_mesh(mesh.make(mesh.axis_table(**axes)))


def made(net: Any = MODEL, update: str = 'mean() | sgd(0.1)', batch: Any = TOKENS, **axes: Any) -> Any:
    options = {name: axes.pop(name) for name in ('attention', 'objective') if name in axes}
    return jaxdist.make_step(net.loss, net.init, jaxdist.build(update), batch, on(**axes), **options)


def trained(program: Any, steps: int = 4) -> Any:
    state = program.init(jax.random.key(0))
    for _ in range(steps):
        state, _ = jax.block_until_ready(program.step(state, TOKENS))
    return jax.device_get(shared_params(state, program.layout))


@pytest.mark.slow
@pytest.mark.parametrize(
    'update',
    [
        'adam(1e-3) | diloco(every=2, outer=sgd(0.7, momentum=0.9))',
        'delay(steps=1) | mean(codec=int8()) | sgd(0.1)',
        'sgd(0.1) | streaming_diloco(every=2, fragments=2, outer=sgd(0.7), overlap=1)',
    ],
)
def test_algorithms_act_between_workers_that_share_sequences(update: str) -> None:
    expected = trained(made(update=update, workers=2))
    got = trained(made(update=update, workers=2, context=4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-4, atol=5e-5), got, expected)


class Block(nn.Module):
    """A user's module: causal attention with one head, and logits."""

    shared: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(64, 8)(local(tokens) if self.shared else tokens)
        q, k, v = (nn.Dense(8, use_bias=False)(x)[:, :, None] for _ in range(3))
        return nn.Dense(64)(attend(q, k, v)[:, :, 0])


@pytest.mark.slow
def test_a_users_module_shares_sequences() -> None:
    results = jaxdist.same_under(from_linen(Block(), TASK), [{'workers': 2, 'context': 4}], TOKENS)
    assert results[0].problem == ''


def test_a_loss_that_does_not_divide_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="given whole sequences, which 2 devices of mesh axis 'context' divide: take"):
        made(from_linen(Block(shared=False), TASK), workers=2, context=2)
    with pytest.raises(ValueError, match="does not divide sequences among the 2 devices of mesh axis 'context': take"):
        made(from_linen(nn.Embed(64, 64), TASK), workers=2, context=2)


def test_a_count_of_whole_sequences_is_refused() -> None:
    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        return {'loss': (params * local(batch['tokens'][:, 1:])).sum()}, len(batch['tokens'])

    model = MODEL._replace(loss=loss, init=lambda key: jnp.ones(()))
    message = "is 8 on each of the 2 devices of mesh axis 'context', and 8 of whole sequences: .* positions, 4"
    with pytest.raises(ValueError, match=message):
        made(model, workers=2, context=2)


@pytest.mark.parametrize(
    'axes, message',
    [
        ({'workers': 1, 'context': 8}, r'8 positions cannot be divided among 8 devices .* 16 would do'),
        ({'workers': 1, 'context': 2, 'attention': 'star'}, "no attention 'star': choose ring, ulysses or gathered"),
        (
            {'workers': 1, 'context': 2, 'model': 4, 'attention': 'ulysses'},
            "2 devices of mesh axis 'context' and 4 of mesh axis 'model' do not divide 4 heads of keys",
        ),
    ],
)
def test_layouts_that_do_not_fit_are_refused(axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**axes)


def test_noise_is_drawn_anew_for_every_part_of_a_sequence() -> None:
    draw = lambda params, state, batch, key: (jax.random.normal(key), params, state)  # noqa: E731
    key = jax.random.key(0)
    with jax.set_mesh(mesh.make({'context': 4})):
        args = jnp.ones(1), (), {'x': jnp.ones(4)}, key
        total = on_devices(draw, ['context'], P(), (), args, sequence_axis='context')[0]
    each = [jax.random.normal(jax.random.fold_in(key, device)) for device in range(4)]
    np.testing.assert_allclose(total, np.sum(each), rtol=1e-5)


def test_constraints_are_refused() -> None:
    small = inequality('small', lambda p: jnp.sum(p['norm']['scale'] ** 2), bound=1.0)
    objective = LagrangianObjective((small,), optax.sgd(0.1))
    with pytest.raises(ValueError, match="constraints need a mesh without the axis 'context'"):
        made(workers=2, context=2, objective=objective)


@pytest.mark.parametrize('shapes', [((1, 4, 3, 8), (1, 4, 2, 8)), ((1, 4, 2, 8), (1, 3, 2, 8))])
def test_shapes_that_do_not_fit_are_refused(shapes: Any) -> None:
    q, k = (jnp.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r'keys and values .B, T, G, K. with a G that divides H'):
        attend(q, k, k)


@pytest.mark.slow
def test_a_run_goes_on_with_shared_sequences(tmp_path: Path) -> None:
    small = Experiment(
        model=Transformer(layers=1, width=16, heads=2),
        data=Text(context=16, held_out=0.001),
        batch=128,
        steps=2,
        log_every=1,
        mesh=Mesh(workers=2, context=2),
    )
    finish(small, tmp_path / 'run')
    gathered = ContextSettings(attention='gathered')
    finish(dataclasses.replace(small, steps=4, mesh=Mesh(workers=2, context=4), context=gathered), tmp_path / 'run')
    finish(dataclasses.replace(small, steps=4, mesh=Mesh(workers=2)), tmp_path / 'plain')
    assert losses(tmp_path / 'run') == pytest.approx(losses(tmp_path / 'plain'), rel=1e-5)
