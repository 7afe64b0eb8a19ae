"""Layouts of a worker compiled for eight TPU chips: bytes over each axis, in the dtypes that the program says."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

import jaxdist
from jaxdist import ledger
from jaxdist.core.types import Task
from jaxdist.models import Transformer
from jaxdist.parallel import Pipeline
from jaxdist.training.step import make_step, partitioned

Chips = topologies.TopologyDescription

TASK, MICROBATCHES = Task('tokens', (128,), 512), 4


def compiled(chips: Chips, compute: Any, **axes: int) -> tuple[Any, Mesh, Any, Any]:
    """The compiled step of a stacked transformer, its mesh, and the parameters' and the batch's shapes."""
    devices = np.array(chips.devices).reshape(tuple(axes.values()))
    mesh = Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    model = Transformer(layers=4, width=256, heads=2, stacked=True).build(TASK)
    workers, pipeline = jaxdist.on_mesh(mesh), Pipeline(model.parts, MICROBATCHES) if model.parts else None
    batch = {'tokens': jax.ShapeDtypeStruct((32, 129), jnp.int32, sharding=NamedSharding(mesh, jax.P('workers')))}
    update = optax.chain(jaxdist.mean(), optax.sgd(0.1))
    made = make_step(
        model.loss, model.init, update, batch, workers, rules=model.rules, compute=compute, guard=False,
        pipeline=pipeline,
    )  # fmt: skip
    params = jax.eval_shape(model.init, jax.random.key(0))
    partition = partitioned(params, model.rules, workers, pipeline)[1]
    seen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, compute or x.dtype), params)
    formula = partition.sends(model.loss, seen, batch, dict(mesh.shape))
    return made.step.lower(made.state, batch).compile(), mesh, params, formula


def sent(program: Any, mesh: Mesh, axis: str) -> dict[tuple[str, str], Fraction]:
    totals: dict[tuple[str, str], Fraction] = {}
    for row in ledger.compiled(program, mesh):
        if row.axes == (axis,):
            key = row.kind, row.dtype
            totals[key] = totals.get(key, Fraction(0)) + row.sent * (row.times or 0)
    return totals


def halved(totals: dict[tuple[str, str], Fraction], kind: str, dtype: str) -> Fraction:
    """Bytes by this kind, or in its place by an all-reduce, which sends twice as many."""
    return totals.get((kind, dtype), Fraction(0)) + totals.get(('all_reduce', dtype), Fraction(0)) / 2


def test_a_fully_sharded_worker_gathers_bfloat16_and_scatters_float32(chips: Chips) -> None:
    """XLA for TPU all-reduces some tensors instead: here those of few entries, and [4, 256, 3, 2, 128]."""
    program, mesh, params, _ = compiled(chips, jnp.bfloat16, workers=2, fsdp=4)
    totals = sent(program, mesh, 'fsdp')
    share = Fraction(3, 4) * sum(x.size for x in jax.tree.leaves(params))
    assert halved(totals, 'all_gather', 'bfloat16') == 2 * share
    scalars = 3 * 4 * Fraction(3, 4)
    assert halved(totals, 'reduce_scatter', 'float32') == 4 * share + scalars
    assert totals['reduce_scatter', 'float32'] > 0.7 * 4 * share


@pytest.mark.parametrize('axes', [{'workers': 2, 'stage': 4}, {'workers': 1, 'stage': 2, 'fsdp': 2, 'model': 2}])
def test_stages_send_the_bytes_of_the_formula(chips: Chips, axes: dict[str, int]) -> None:
    """The last permutation in each direction goes nowhere, and the compiler may leave it out."""
    program, mesh, _, formula = compiled(chips, None, **axes)
    total = sum(sent(program, mesh, 'stage').values())
    stages, rows = axes['stage'], 32 // (axes['workers'] * axes.get('fsdp', 1) * MICROBATCHES)
    passed = rows * 128 * 256 * 4
    assert formula['stage'] - 2 * passed <= total <= formula['stage']
    assert total > 2 * (MICROBATCHES + stages - 2) * passed
    # Matrices for products of bfloat16 are gathered as that.
    assert sum(sent(program, mesh, 'fsdp').values()) <= formula.get('fsdp', 0) * 1.25
