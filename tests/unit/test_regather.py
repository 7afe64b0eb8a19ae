"""Fully sharded workers that gather each block when it is evaluated."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist
from jaxdist import ledger
from jaxdist.core import mesh
from jaxdist.core.types import Parts, Task
from jaxdist.models import Perceptron, Transformer, from_parts
from jaxdist.parallel import Fsdp, Pipeline, regather

MODEL = Transformer(layers=8, width=32, heads=2, stacked=True).build(Task('tokens', (8,), 64))
TOKENS = {'tokens': np.random.default_rng(0).integers(0, 64, (16, 9)).astype(np.int32)}
BLOCKS = sum(x.size for x in jax.tree.leaves(jax.eval_shape(MODEL.init, jax.random.key(0))['blocks']))
REST = 64 * 32 + 32


def program(again: bool, compute: Any = None, **axes: int) -> Any:
    workers = jaxdist.on_mesh(mesh.make(mesh.axis_table(**axes)))
    return jaxdist.make_step(
        MODEL.loss, MODEL.init, optax.chain(jaxdist.mean(), optax.sgd(0.1)), TOKENS, workers,
        rules=MODEL.rules, compute=compute, guard=False, pipeline=Pipeline(MODEL.parts), fsdp=Fsdp(again),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_layouts_are_alike(accumulate: int) -> None:
    layouts = [{'workers': 2, 'fsdp': 4}, {'workers': 2, 'fsdp': 2, 'model': 2}]
    results = jaxdist.same_under(MODEL, layouts, TOKENS, regather=True, accumulate=accumulate)
    assert [result.problem for result in results] == ['', '']


def test_what_is_whole_in_a_block_is_added_up_too() -> None:
    """Four devices divide neither the bias of a block, [3], nor the scale of the edge."""
    parts = Parts(
        first=lambda edge, batch: batch['x'],
        block=lambda row, x: x + jnp.tanh(x @ row['up'] + row['bias']) @ row['up'].T,
        last=lambda edge, x, batch: ({'loss': jnp.sum((edge * x.sum(1) - batch['y']) ** 2)}, x.shape[0]),
    )
    block = lambda key: {'up': 0.3 * jax.random.normal(key, (8, 3)), 'bias': jnp.zeros(3)}  # noqa: E731
    model = from_parts(lambda key: jnp.ones(()), block, 2, parts)
    rng = np.random.default_rng(0)
    batch = {'x': rng.normal(size=(8, 8)), 'y': rng.normal(size=8)}
    (result,) = jaxdist.same_under(model, [{'workers': 2, 'fsdp': 4}], batch, regather=True)
    assert result.problem == ''


@pytest.mark.parametrize('compute, size', [(None, 4), (jnp.bfloat16, 2)])
def test_blocks_are_gathered_twice_and_scattered_once(compute: Any, size: int) -> None:
    made, share = program(True, compute, workers=2, fsdp=4), Fraction(3, 4)
    rows = [row for row in ledger.cost(made, TOKENS, jax.random.key(0)).rows if row.axes == ('fsdp',)]
    sent = {
        kind: sum(row.bytes_per_step for row in rows if row.kind == kind) for kind in ('all_gather', 'reduce_scatter')
    }
    assert sent == {
        'all_gather': share * size * (2 * BLOCKS + REST),
        'reduce_scatter': share * 4 * (BLOCKS + REST),
    }


@pytest.mark.slow
def test_no_device_keeps_whole_blocks() -> None:
    def temporaries(again: bool) -> int:
        made = program(again, workers=1, fsdp=8)
        return int(made.step.lower(made.state, TOKENS).compile().memory_analysis().temp_size_in_bytes)

    # Without it there are the whole blocks and their whole gradient.
    assert temporaries(True) < temporaries(False) - 1.5 * 4 * BLOCKS


@pytest.mark.slow
def test_a_gather_whose_gradient_is_not_added_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(g: jax.Array, spec: Any, axis: str) -> jax.Array:
        size = jax.lax.axis_size(axis)
        dim, me = list(spec).index(axis), jax.lax.axis_index(axis)
        return jax.lax.dynamic_slice_in_dim(g, me * (g.shape[dim] // size), g.shape[dim] // size, dim)

    monkeypatch.setattr(regather, 'scattered', own)
    (result,) = jaxdist.same_under(MODEL, [{'workers': 2, 'fsdp': 2}], TOKENS, regather=True)
    assert 'gradient of' in result.problem


def test_what_cannot_be_regathered() -> None:
    with pytest.raises(ValueError, match='regather is for a mesh with the axis fsdp and without stages'):
        program(True, workers=2, stage=2, fsdp=2)
    with pytest.raises(ValueError, match='regather is for a mesh with the axis fsdp'):
        program(True, workers=2)
    model = Perceptron(hidden=(8,)).build(Task('classes', (4,), 3))
    batch = {'x': np.ones((8, 4), np.float32), 'y': np.zeros(8, int)}
    with pytest.raises(ValueError, match='and for a model in parts'):
        jaxdist.same_under(model, [{'workers': 1, 'fsdp': 2}], batch, regather=True)


@pytest.mark.parametrize('axes', [{'workers': 2, 'fsdp': 2}, {'workers': 2, 'stage': 2, 'fsdp': 2}])
def test_rows_of_blocks_cannot_be_sharded_by_a_rule(axes: dict[str, int]) -> None:
    """Each device would walk through its own rows alone, or the rule would be ignored."""
    workers, update = jaxdist.on_mesh(mesh.make(mesh.axis_table(**axes))), optax.chain(jaxdist.mean(), optax.sgd(0.1))
    rules = [('blocks/up/kernel', ('fsdp', None, None))]
    with pytest.raises(ValueError, match=r"a rule shards dim 0 of the blocks, .* over 'fsdp': shard another dim"):
        jaxdist.make_step(
            MODEL.loss, MODEL.init, update, TOKENS, workers, rules=rules, pipeline=Pipeline(MODEL.parts),
            fsdp=Fsdp(regather='stage' not in axes),
        )  # fmt: skip
