"""The search for a layout: workloads of users' models, and estimates beside what programs send and store."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist import ledger
from jaxdist.cli import options
from jaxdist.cli.plan import PlanOptions
from jaxdist.core import mesh, workers
from jaxdist.core.types import Batch, Model, Parts, Task
from jaxdist.data import Text
from jaxdist.ledger.flops import flops
from jaxdist.models import ConvNet, MixtureTransformer, Transformer, from_parts
from jaxdist.planner.cost import Traffic, estimate
from jaxdist.planner.layouts import Layout
from jaxdist.planner.machines import MACHINES, machine
from jaxdist.training.experiment import (
    ConstraintSettings,
    ContextSettings,
    Experiment,
    FsdpSettings,
    Mesh,
    PipelineSettings,
)
from jaxdist.training.layout_search import laid_out, layout_options, search
from jaxdist.training.plan import traffic
from jaxdist.training.train import make_program, prepare
from jaxdist.training.workload import workload

SMALL = Experiment(
    update='mean() | sgd(0.1)',
    model=Transformer(layers=4, width=16, heads=4, stacked=True),
    data=Text(context=16),
    batch=32,
    guard=False,
)
LAYOUTS = [
    Layout(workers=2, fsdp=4, again=True),
    Layout(workers=2, fsdp=4, microbatches=2, regather=True, again=True),
    Layout(workers=2, stage=4, microbatches=4, again=True),
    Layout(workers=2, context=4, again=True),
    Layout(workers=1, stage=2, fsdp=2, context=2, microbatches=2, again=True),
]
SCALARS = 150
"""Bytes of sums and counts, which the planner leaves out."""


def load(experiment: Experiment) -> tuple[Model, Any]:
    data = experiment.data.load()
    return experiment.model.build(data.task), data


EXPERTS = dataclasses.replace(SMALL, model=MixtureTransformer(layers=2, width=16, heads=2, mlp=1, experts=4))
# Of dropless experts the planner leaves out the choices and weights that go with each token.
DROPLESS = dataclasses.replace(EXPERTS, model=dataclasses.replace(EXPERTS.model, width=128, capacity=0.0))
MIXTURES = [Layout(workers=2, expert=4, again=True), Layout(workers=2, fsdp=2, expert=2, again=True)]
CASES = [(SMALL, at) for at in LAYOUTS] + [(each, at) for each in (EXPERTS, DROPLESS) for at in MIXTURES]


@pytest.mark.slow
@pytest.mark.parametrize('settings, layout', CASES, ids=lambda x: str(x) if isinstance(x, Layout) else '')
def test_estimated_bytes_are_those_of_the_program(settings: Experiment, layout: Layout) -> None:
    model, data = load(settings)
    batch = data.batch(0, 0, settings.batch, layout.workers)
    size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    sent = 2 * (layout.workers - 1) / layout.workers * 4 * size
    cost = estimate(workload(model, batch), MACHINES['v5e'], layout, Traffic(settings.update, sent))
    experiment = laid_out(settings, cost)
    program = make_program(experiment, data, model, workers.on_mesh(mesh.make(experiment.mesh.axes)))
    rows = ledger.cost(program, batch, jax.random.key(0)).rows
    for axis in program.state.params['edge']['embedding'].sharding.mesh.axis_names:
        measured = sum(float(row.bytes_per_step or 0) for row in rows if axis in row.axes)
        # Vectors that no rule shards over an axis are whole, where the planner takes them for sharded.
        assert cost.sent[axis] == pytest.approx(measured, rel=0.02, abs=SCALARS), axis


def test_flops_are_those_of_the_products() -> None:
    model, data = load(SMALL)
    found = workload(model, data.batch(0, 0, 32, 1))
    tokens, width = 16, 16
    assert found.block_flops == tokens * (2 * 12 * width**2 + 4 * tokens * width)
    assert found.edge_flops == 2 * tokens * width * data.task.classes
    assert (found.layers, found.pairs, found.passed) == (4, 2, 4 * tokens * width)
    assert found.keys == 2 * 4 * tokens * width


def test_activations_are_what_derivatives_keep() -> None:
    """Of y = tanh(x w) they are x, y and 1 - y, and not the matrix."""
    parts = Parts(
        first=lambda edge, batch: batch['x'],
        block=lambda w, x: jnp.tanh(x @ w),
        last=lambda edge, x, batch: ({'loss': jnp.sum((x @ edge) ** 2)}, x.shape[0]),
    )
    model = from_parts(lambda key: jnp.ones((8, 3)), lambda key: jnp.eye(8), 2, parts)
    found = workload(model, {'x': np.zeros((4, 8), np.float32)})
    assert (found.passed, found.kept) == (32, 3 * 32)
    assert found.block_flops == 2 * 8 * 8
    assert 32 + 12 <= found.head <= 32 + 2 * 12


def test_flops_of_loops_branches_and_convolutions() -> None:
    x, image = jnp.ones((4, 4)), jnp.ones((2, 8, 8, 3))
    assert flops(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: y @ x, x), x) == 5 * 128
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x), x) == 2 * 128
    kernel = jnp.ones((3, 3, 3, 5))
    numbers = ('NHWC', 'HWIO', 'NHWC')
    convolve = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers)  # noqa: E731
    assert flops(convolve, image) == 2 * 2 * 64 * 5 * 27
    assert flops(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.tanh(x @ x))(x) @ x)), x) == 7 * 128


def test_a_model_without_parts_is_one_block() -> None:
    model = ConvNet().build(Task('classes', (28, 28, 1), 10))
    found = workload(model, {'x': np.zeros((8, 28, 28, 1), np.float32), 'y': np.zeros(8, np.int32)})
    assert (found.layers, found.edge, found.keys) == (0, 0, 0)
    assert set(found.limits) == {'fsdp', 'model'}


@pytest.mark.parametrize('compute, size', [(None, 4), (jnp.bfloat16, 2)])
def test_activations_have_the_dtype_of_the_loss(compute: Any, size: int) -> None:
    model, data = load(SMALL)
    found = workload(model, data.batch(0, 0, 32, 1), compute)
    assert (found.compute_bytes, found.passed) == (size, size * 16 * 16)


def test_a_loss_that_does_not_divide_sequences_has_no_context() -> None:
    def loss(params: Any, batch: Batch, key: jax.Array) -> Any:
        return {'loss': jnp.sum(batch['x'] @ params['w'])}, batch['x'].shape[0]

    found = workload(Model(lambda key: {'w': jnp.ones((8, 4))}, loss), {'x': np.zeros((8, 8), np.float32)})
    assert set(found.limits) == {'fsdp'}


@pytest.mark.slow
def test_lines_are_part_of_the_search() -> None:
    local = 'sgd(0.1) | diloco(every=10, outer=sgd(0.7, momentum=0.9), codec=int8())'
    slow = dataclasses.replace(MACHINES['h100'], slow_link=1e6, group=2)
    found = search(SMALL, slow, 8, [local])
    two = {cost.traffic.name: cost for cost in found.ranked if cost.layout == Layout(workers=4, fsdp=2, again=True)}
    assert two[local].sent['workers'] < two[SMALL.update].sent['workers'] / 35
    assert two[local].memory['optimiser'] == pytest.approx(2 * two[local].memory['parameters'], rel=0.01)
    assert two[SMALL.update].memory['optimiser'] == 0
    assert two[local].step < two[SMALL.update].step


def test_workers_may_be_kept() -> None:
    assert {cost.layout.workers for cost in search(SMALL, MACHINES['v5e'], 8, workers=4).ranked} == {4}


def test_a_machine_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / 'ours.json'
    path.write_text(json.dumps({'like': 'h100', 'slow_link': 1e9}))
    assert machine(str(path)) == dataclasses.replace(MACHINES['h100'], name='ours', slow_link=1e9)


def test_the_options_lay_out_a_config_whatever_its_layout() -> None:
    """Also a config that has another layout: what the command line gives is the layout that was estimated."""
    mesh_before = Mesh(workers=2, fsdp=4, emulate=True)
    before = dataclasses.replace(SMALL, accumulate=4, mesh=mesh_before, fsdp=FsdpSettings(regather=True))
    for cost in search(before, MACHINES['v5e'], 8).ranked[::7]:
        words = shlex.split(layout_options(before, cost))
        parsed = options.parse(PlanOptions(before), words, 'plan').experiment
        emulated = dataclasses.replace(laid_out(before, cost).mesh, emulate=True)
        assert parsed == dataclasses.replace(laid_out(before, cost), mesh=emulated)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'fsdp': FsdpSettings(gathers='int8()')}, 'does not estimate --fsdp.gathers and --fsdp.scatters'),
        ({'context': ContextSettings('ulysses')}, 'does not estimate --context.attention other than ring'),
        ({'pipeline': PipelineSettings(4, 'gpipe')}, 'does not estimate --pipeline.schedule other than 1f1b'),
        ({'constraints': ConstraintSettings(hold=('squared_norm(bound=1.0)',))}, 'does not estimate constraints'),
        ({'model': dataclasses.replace(SMALL.model, chunks=2)}, r'--model.chunks 1 and --model.spare 0'),
    ],
)
def test_settings_that_are_not_estimated_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(dataclasses.replace(SMALL, **settings), MACHINES['v5e'], 8)


@pytest.mark.slow
def test_the_attention_of_an_experiment_is_that_of_its_program() -> None:
    kinds = {}
    for attention in ('ring', 'ulysses', 'gathered'):
        how = ContextSettings(attention)  # type: ignore[arg-type]
        training = prepare(dataclasses.replace(SMALL, mesh=Mesh(workers=2, context=4), context=how))
        kinds[attention] = {row.kind for row in traffic(training) if row.axes == ('context',)}
    assert kinds['ring'] == {'all_reduce', 'permute'}
    assert kinds['ulysses'] == {'all_reduce', 'all_to_all'}
    assert kinds['gathered'] == {'all_reduce', 'all_gather', 'reduce_scatter'}
