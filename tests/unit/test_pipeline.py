"""Pipelines: a stacked transformer is the transformer, work and memory of compiled programs, and what is refused."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_fixtures import finish, losses

import jaxdist
from jaxdist import ledger
from jaxdist.constraints import LagrangianObjective, inequality
from jaxdist.core import mesh
from jaxdist.core.types import Model, Parts, Task, Variables
from jaxdist.data import Text
from jaxdist.models import Transformer, from_parts
from jaxdist.parallel import Pipeline, Schedule
from jaxdist.parallel import pipeline as pipelines
from jaxdist.training.experiment import Experiment, Mesh, PipelineSettings
from jaxdist.training.step import shared_params

TASK = Task('tokens', (8,), 64)
PLAIN = Transformer(layers=4, width=16, heads=2).build(TASK)
MODEL = Transformer(layers=4, width=16, heads=2, stacked=True).build(TASK)
TOKENS = {'tokens': np.random.default_rng(0).integers(0, 64, (16, 9)).astype(np.int32)}


def on(**axes: int) -> Any:
    return jaxdist.on_mesh(mesh.make(mesh.axis_table(**axes)))


def program(update: str, model: Model = MODEL, microbatches: int = 4, batch: Any = TOKENS, **axes: int) -> Any:
    workers = on(**axes)
    pipeline = Pipeline(model.parts, microbatches) if model.parts else None
    rules = model.rules if len(workers.mesh.shape) > 1 else ()
    return jaxdist.make_step(
        model.loss, model.init, jaxdist.build(update), batch, workers, rules=rules, pipeline=pipeline
    )


@pytest.mark.slow
def test_a_stacked_transformer_is_the_transformer() -> None:
    params = MODEL.init(jax.random.key(0))
    blocks = {f'block{i}': jax.tree.map(lambda x, i=i: x[i], params['blocks']) for i in range(4)}
    same = {'embed': {'embedding': params['edge']['embedding']}, 'norm': params['edge']['norm'], **blocks}
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, PLAIN.init(jax.random.key(0)))
    weighted = {**TOKENS, 'weight': np.linspace(0, 1, 16, dtype=np.float32)}
    np.testing.assert_allclose(MODEL.outputs(params, TOKENS), PLAIN.outputs(same, TOKENS), rtol=1e-5, atol=1e-5)
    for batch in (TOKENS, weighted):
        (sums, count), (same_sums, same_count) = (m.loss(p, batch, None) for m, p in ((MODEL, params), (PLAIN, same)))
        assert count == same_count
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, same_sums)


@pytest.mark.parametrize(
    'schedule, layout',
    [
        ('1f1b', {'workers': 2, 'stage': 4}),
        pytest.param('gpipe', {'workers': 2, 'stage': 4}, marks=pytest.mark.slow),
        pytest.param('1f1b', {'workers': 1, 'stage': 2, 'fsdp': 2, 'model': 2}, marks=pytest.mark.slow),
    ],
)
def test_layouts_are_alike(schedule: Any, layout: dict[str, int]) -> None:
    (result,) = jaxdist.same_under(MODEL, [layout], TOKENS, microbatches=4, schedule=schedule)
    assert result.problem == ''


@pytest.mark.slow
@pytest.mark.parametrize('microbatches', [1, 8])
def test_layouts_are_alike_with_few_and_many_microbatches(microbatches: int) -> None:
    (result,) = jaxdist.same_under(MODEL, [{'workers': 2, 'stage': 4}], TOKENS, microbatches=microbatches)
    assert result.problem == ''


IN_CHUNKS = Transformer(layers=8, width=16, heads=2, mlp=1, stacked=True, chunks=2).build(Task('tokens', (8,), 64))


@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['1f1b', 'gpipe'])
def test_interleaved_pipelines_are_alike(schedule: Any) -> None:
    layouts = [{'workers': 2, 'stage': 4}, {'workers': 1, 'stage': 2, 'fsdp': 2, 'model': 2}]
    results = jaxdist.same_under(IN_CHUNKS, layouts, TOKENS, microbatches=4, schedule=schedule)
    assert [result.problem for result in results] == [''] * 2


@pytest.mark.slow
def test_blocks_in_chunks_need_no_stages() -> None:
    results = jaxdist.same_under(IN_CHUNKS, [{'workers': 2, 'fsdp': 2, 'model': 2}], TOKENS)
    results += jaxdist.same_under(IN_CHUNKS, [{'workers': 2, 'fsdp': 4}], TOKENS, regather=True)
    assert [result.problem for result in results] == [''] * 2


def spared(chunks: int) -> Model:
    """Seven blocks and a spare one."""
    settings = Transformer(layers=7, width=16, heads=2, mlp=1, stacked=True, chunks=chunks, spare=1)
    return settings.build(Task('tokens', (8,), 64))


@pytest.mark.slow
@pytest.mark.parametrize('chunks', [1, 2])
def test_the_last_stage_may_have_fewer_blocks(chunks: int) -> None:
    layouts = [{'workers': 2, 'stage': 4}, {'workers': 1, 'stage': 2, 'fsdp': 2, 'model': 2}]
    results = jaxdist.same_under(spared(chunks), layouts, TOKENS, microbatches=4)
    results += jaxdist.same_under(spared(chunks), [{'workers': 2, 'fsdp': 4}], TOKENS, regather=True)
    assert [result.problem for result in results] == [''] * 3


@pytest.mark.slow
def test_a_spare_block_changes_nothing() -> None:
    plain = Transformer(layers=7, width=16, heads=2, mlp=1, stacked=True).build(Task('tokens', (8,), 64))
    params, same = (model.init(jax.random.key(0)) for model in (spared(1), plain))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:7], b), params['blocks'], same['blocks'])
    loss, grads = jax.value_and_grad(lambda p: spared(1).loss(p, TOKENS, None)[0]['loss'])(params)
    np.testing.assert_allclose(loss, plain.loss(same, TOKENS, None)[0]['loss'], rtol=1e-6)
    assert all(np.all(np.asarray(g)[7] == 0) for g in jax.tree.leaves(grads['blocks']))


@pytest.mark.slow
def test_blocks_in_chunks_are_those_in_rows() -> None:
    rows = Transformer(layers=8, width=16, heads=2, mlp=1, stacked=True).build(Task('tokens', (8,), 64))
    params, same = (model.init(jax.random.key(0)) for model in (IN_CHUNKS, rows))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), params, same)
    losses = [model.loss(p, TOKENS, None)[0]['loss'] for model, p in ((IN_CHUNKS, params), (rows, same))]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.slow
def test_parts_may_be_of_any_form() -> None:
    """Activations and blocks are trees, the first part has no parameters, and examples are weighted."""
    parts = Parts(
        first=lambda edge, batch: {'x': batch['x'], 'total': batch['x'].sum(1)},
        block=lambda row, at: {'x': jnp.tanh(at['x'] @ row['w'] + row['b']), 'total': at['total'] + at['x'][:, 0]},
        last=lambda edge, at, batch: (
            {'loss': jnp.sum(batch['weight'] * (at['x'] @ edge + at['total'] - batch['y']) ** 2)},
            batch['weight'].sum(),
        ),
    )
    block = lambda key: {'w': 0.3 * jax.random.normal(key, (4, 4)), 'b': jnp.zeros(4)}  # noqa: E731
    model = from_parts(lambda key: jnp.ones(4), block, 4, parts)
    rng = np.random.default_rng(0)
    batch = {'x': rng.normal(size=(16, 4)), 'y': rng.normal(size=16), 'weight': rng.random(16)}
    layouts = [{'workers': 2, 'stage': 4}, {'workers': 2, 'stage': 2, 'fsdp': 2}]
    results = jaxdist.same_under(model, layouts, batch, microbatches=2)
    assert [result.problem for result in results] == ['', '']


@pytest.mark.slow
@pytest.mark.parametrize('chunks', [1, 2])
def test_a_block_may_have_no_gradient_at_zeros(chunks: int) -> None:
    """A stage that waits evaluates its blocks at zeros, where the gradient of a norm is not a number."""
    parts = Parts(
        first=lambda edge, batch: batch['x'],
        block=lambda row, x: jnp.tanh(x @ row) + x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        last=lambda edge, x, batch: ({'loss': jnp.sum((x @ edge - batch['y']) ** 2)}, x.shape[0]),
        chunks=chunks,
    )
    model = from_parts(lambda key: jnp.ones(4), lambda key: jax.random.normal(key, (4, 4)), 4, parts)
    batch = {'x': np.random.default_rng(0).normal(size=(16, 4)), 'y': np.ones(16)}
    (result,) = jaxdist.same_under(model, [{'workers': 1, 'stage': 4 // chunks}], batch, microbatches=4)
    assert result.problem == ''


@pytest.mark.slow
@pytest.mark.parametrize(
    'mutant', ['a stage is off by one tick', 'one input too few is kept', 'one input too few is kept of chunks']
)
def test_mutants_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutant == 'a stage is off by one tick':
        monkeypatch.setattr(Schedule, 'backward', lambda self, stage, tick: tick - self.fill - self.stages + stage)
    else:
        monkeypatch.setattr(Schedule, 'held', property(lambda self: 2 * self.chunks * self.stages - 4))
    model = IN_CHUNKS if 'chunk' in mutant else MODEL
    (result,) = jaxdist.same_under(model, [{'workers': 1, 'stage': 4}], TOKENS, microbatches=8)
    assert 'gradient of' in result.problem


@pytest.mark.slow
def test_the_edge_is_added_up_over_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, 'on_shards', lambda code, spec: lambda g: jax.lax.pmean(g, 'stage'))
    (result,) = jaxdist.same_under(MODEL, [{'workers': 1, 'stage': 2}], TOKENS, microbatches=2)
    assert "gradient of 'edge/embedding' is off" in result.problem


def temporaries(microbatches: int, schedule: Any = '1f1b') -> int:
    """Bytes of the compiled step's temporaries, with microbatches of one size."""
    batch = {'tokens': np.zeros((2 * microbatches, 65), np.int32)}
    model = Transformer(layers=4, width=64, heads=2, stacked=True).build(Task('tokens', (64,), 64))
    pipeline = Pipeline(model.parts, microbatches, schedule)
    update, workers = optax.chain(jaxdist.mean(), optax.sgd(0.1)), on(workers=1, stage=4)
    made = jaxdist.make_step(model.loss, model.init, update, batch, workers, pipeline=pipeline)
    return int(made.step.lower(made.state, batch).compile().memory_analysis().temp_size_in_bytes)


@pytest.mark.slow
def test_bytes_of_the_compiled_program_are_those_of_the_formula() -> None:
    made = program('mean() | sgd(0.1)', workers=2, stage=4)
    compiled = made.step.lower(made.state, TOKENS).compile()
    sent = sum(row.sent * row.times for row in ledger.compiled(compiled, made.workers.mesh) if row.axes == ('stage',))
    # Seven permutations in each direction, of microbatches of 2 x 8 x 16; the edge's gradient; loss, accuracy, count;
    # and for the guard the squared norms of the six tensors of blocks.
    scalars, edge, passed = 3 + 6, 64 * 16 + 16, 2 * 8 * 16
    assert sent == 4 * (14 * passed + Fraction(3, 2) * (edge + scalars))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_microbatches() -> None:
    passed = 2 * 64 * 64 * 4
    assert temporaries(32) - temporaries(16) < passed  # by the batch of tokens alone
    assert temporaries(32, 'gpipe') - temporaries(16, 'gpipe') > 15 * passed


@pytest.mark.slow
def test_diloco_between_pipelined_workers_trains_as_between_plain_ones() -> None:
    def trained(**axes: int) -> Any:
        made = program('sgd(0.3) | diloco(every=2, outer=sgd(0.7, momentum=0.9, nesterov=True))', **axes)
        state = made.init(jax.random.key(0))
        for _ in range(4):
            state, _ = jax.block_until_ready(made.step(state, TOKENS))
        return jax.device_get(shared_params(state, made.layout)), made

    expected, _ = trained(workers=2)
    actual, made = trained(workers=2, stage=2, fsdp=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), actual, expected)
    # Between workers nothing is sent but in a round, and then each device sends its shard.
    rows = [row for row in ledger.cost(made, TOKENS, jax.random.key(0)).rows if 'workers' in row.axes]
    assert {row.frequency for row in rows if row.bytes_when_run > 8} == {Fraction(1, 2)}
    entries = sum(x.size for x in jax.tree.leaves(MODEL.init(jax.random.key(0))['blocks']))
    assert sum(row.bytes_when_run for row in rows) < 4 * (entries / 4 + 64 * 16 / 2 + 16) + 64


@pytest.mark.slow
def test_a_run_goes_on_with_other_stages(tmp_path: Path) -> None:
    experiment = Experiment(
        update='mean() | adam(1e-2)',
        model=Transformer(layers=4, width=16, heads=2, stacked=True),
        data=Text(context=8, held_out=0.001),
        mesh=Mesh(workers=2),
        batch=16,
        steps=2,
        log_every=1,
    )
    finish(dataclasses.replace(experiment, steps=4), tmp_path / 'same')
    layouts = [Mesh(workers=2, stage=4), Mesh(workers=2, stage=2, fsdp=2)]
    for number, layout in enumerate(layouts):
        how = PipelineSettings(microbatches=2 ** (number + 1))
        longer = dataclasses.replace(experiment, mesh=layout, steps=2 * (number + 1), pipeline=how)
        finish(longer, tmp_path / 'changing')
    assert losses(tmp_path / 'changing') == pytest.approx(losses(tmp_path / 'same'), rel=1e-4)


@pytest.mark.parametrize(
    'options, problem',
    [
        (
            {'model': Transformer(layers=4, width=16, heads=2).build(TASK), 'stage': 2},
            'the mesh has 2 pipeline stages, and',
        ),
        ({'stage': 8}, r'8 stages do not divide the blocks: blocks/down/kernel \(4, 64, 16\) has 4 blocks'),
        ({'workers': 2, 'stage': 2, 'microbatches': 3}, 'cannot be divided among 2 workers in 3 parts each; 12 or 18'),
    ],
)
def test_layouts_that_do_not_fit(options: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        program('mean() | sgd(0.1)', **options)


def test_the_loss_must_be_that_of_the_parts() -> None:
    def other(params: Any, batch: Any, key: Any) -> Any:
        sums, count = MODEL.loss(params, batch, key)
        return {**sums, 'penalty': jnp.sum(params['edge']['embedding'] ** 2)}, count

    update, pipeline = optax.chain(jaxdist.mean(), optax.sgd(0.1)), Pipeline(MODEL.parts, 4)
    with pytest.raises(ValueError, match='the loss has the sums accuracy, loss, penalty, and the last part'):
        jaxdist.make_step(other, MODEL.init, update, TOKENS, on(stage=2), pipeline=pipeline)
    with_state = lambda key: Variables(MODEL.init(key), {'n': jnp.zeros(())})  # noqa: E731
    stateful = lambda v, batch, key: (*MODEL.loss(v.params, batch, key), v.state)  # noqa: E731
    with pytest.raises(ValueError, match='a model in parts has no model state'):
        jaxdist.make_step(stateful, with_state, update, TOKENS, on(stage=2), pipeline=pipeline)


def test_what_does_not_go_with_stages() -> None:
    update, workers, pipeline = optax.chain(jaxdist.mean(), optax.sgd(0.1)), on(stage=2), Pipeline(MODEL.parts, 4)
    make = lambda **more: jaxdist.make_step(  # noqa: E731
        MODEL.loss, MODEL.init, update, TOKENS, workers, pipeline=pipeline, **more
    )
    with pytest.raises(ValueError, match=r'accumulate=2: a pipeline .* microbatches=4 in its place'):
        make(accumulate=2)
    ball = inequality('ball', lambda p: jnp.sum(p['edge']['embedding'] ** 2), bound=0.1)
    with pytest.raises(ValueError, match='constraints need a layout without them'):
        make(objective=LagrangianObjective((ball,), optax.sgd(0.5)))
    with pytest.raises(ValueError, match='1 block or more, not 0'):
        from_parts(lambda key: (), lambda key: (), 0, MODEL.parts)
