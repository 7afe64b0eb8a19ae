"""The law of layouts: how a worker's work is divided changes no number, and costs the bytes of its formula."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist.algorithms.mean import mean
from jaxdist.core import mesh as meshes
from jaxdist.core.types import Batch, Model, Params
from jaxdist.core.workers import on_mesh
from jaxdist.laws.law import LawBroken, LawResult
from jaxdist.ledger import cost
from jaxdist.models.attention import Attention
from jaxdist.parallel.choice import partitioned
from jaxdist.parallel.fsdp import Fsdp, shards, spec_leaves
from jaxdist.parallel.pipeline import Pipeline
from jaxdist.parallel.schedules import ScheduleName
from jaxdist.training.step import make_step

STEPS = 3
"""Steps after which parameters are compared."""
MOMENTUM = 0.9


def same_under(
    model: Model,
    layouts: Sequence[Mapping[str, int]],
    batch: Batch,
    *,
    learning_rate: float = 0.1,
    tolerance: float = 1e-12,
    accumulate: int = 1,
    microbatches: int = 1,
    schedule: ScheduleName = '1f1b',
    regather: bool = False,
    attention: Attention = 'ring',
) -> list[LawResult]:
    """Whether a model trains alike however it is laid out over devices, one result for each layout.

    In float64, the loss, the gradient and, after three steps of SGD with momentum, the parameters equal those on one
    device; each device stores its shards and no more; the bytes over the axes that jaxdist divides itself are those of
    the formula, as integers; and the step is traced once. The model must compute in the dtype of its parameters, and
    its loss must have no noise: dropout differs between devices.

    Args:
        model: the model.
        layouts: the sizes of the mesh's axes by name, as `{'workers': 2, 'fsdp': 4}`; there must be as many devices.
        batch: a batch of all workers, NumPy arrays [B, ...].
        learning_rate: that of SGD.
        tolerance: the largest difference relative to the largest entry of a tensor.
        accumulate: parts that each device's batch is taken in, where there are no stages.
        microbatches: parts that each device's batch is taken in, where there are stages.
        schedule: the schedule of the stages.
        regather: whether fully sharded workers gather each block when it is evaluated.
        attention: how devices that share sequences compute attention.

    Raises:
        InputError: a layout does not fit the devices, the batch or the model.

    >>> from jaxdist.core.types import Task
    >>> from jaxdist.models import Perceptron
    >>> model, batch = Perceptron(hidden=(4,)).build(Task('values', (2,), 1)), {'x': np.ones((4, 2)), 'y': np.ones(4)}
    >>> same_under(model, [{'workers': 1, 'fsdp': 2}], batch)
    [LawResult(law='same under 1 workers x 2 fsdp', problem='')]
    """
    with jax.enable_x64(True):
        key = jax.random.key(0)
        params = jax.tree.map(_wide, jax.device_get(jax.jit(model.init)(key)))
        batch = jax.tree.map(_wide, batch)
        expected = _train(model, {'workers': 1}, params, batch, learning_rate, 1)
        pipeline = Pipeline(model.parts, microbatches, schedule) if model.parts else None
        results = []
        for layout in layouts:
            table = meshes.axis_table(**layout)
            try:
                how = accumulate, pipeline, Fsdp(regather), attention
                actual = _train(model, layout, params, batch, learning_rate, *how)
                _compare(actual['numbers'], expected['numbers'], tolerance)
                for name in ('bytes', 'stored', 'traces after the first step'):
                    got, formula = actual[name]
                    if got != formula:
                        raise LawBroken(f'{name}: {_text(got)}, expected {_text(formula)}')
                problem = ''
            except LawBroken as broken:
                problem = str(broken)
            results.append(LawResult(f'same under {meshes.axis_text(table)}', problem))
        return results


def _train(
    model: Model,
    layout: Mapping[str, int],
    params: Params,
    batch: Batch,
    learning_rate: float,
    accumulate: int,
    pipeline: Pipeline | None = None,
    fsdp: Fsdp = Fsdp(),
    attention: Attention = 'ring',
) -> dict[str, Any]:
    """The numbers of a training, and pairs of what was measured and what the formula says."""
    workers = on_mesh(meshes.make(meshes.axis_table(**layout)))
    assert workers.mesh is not None
    update = optax.chain(mean(), optax.trace(MOMENTUM), optax.scale(-learning_rate))
    rules = model.rules if len(workers.mesh.shape) > 1 else ()
    steps: list[int] = []
    traced: list[int] = []

    def noted(fn: Any) -> Any:
        def call(*args: Any) -> Any:
            traced.append(len(steps))
            return fn(*args)

        return call

    if pipeline is not None:
        pipeline = pipeline._replace(parts=pipeline.parts._replace(last=noted(pipeline.parts.last)))
    options: dict[str, Any] = {'rules': rules, 'accumulate': accumulate, 'pipeline': pipeline, 'fsdp': fsdp}
    options['attention'] = attention
    program = make_step(noted(model.loss), lambda key: params, update, batch, workers, **options)
    state = program.init(jax.random.key(0))
    numbers: dict[str, Any] = {}
    for step in range(STEPS):
        steps.append(step)
        state, metrics = jax.block_until_ready(program.step(state, batch))
        if step == 0:
            sums = {name: metrics[name].sum() for name in ('loss', 'count')}
            numbers = {**jax.device_get(sums), 'gradient': jax.device_get(state.opt_state[1].trace)}
    again = sum(step > 1 for step in traced)
    numbers[f'parameters after {STEPS} steps'] = jax.device_get(state.params)
    specs, partition = partitioned(params, rules, workers, pipeline, fsdp, accumulate, attention)
    sizes = dict(workers.mesh.shape)
    shard = sum(x.nbytes // shards(s, sizes) for x, s in zip(jax.tree.leaves(params), spec_leaves(specs), strict=True))
    formula = partition.sends(model.loss, params, batch, sizes)
    rows = cost(program, batch, jax.random.key(0)).rows
    sent = {
        axis: sum((row.bytes_per_step or Fraction(0) for row in rows if axis in row.axes), Fraction(0))
        for axis in formula
    }
    stored = [_stored(state.params), _stored(state.opt_state[1].trace)]
    return {
        'numbers': numbers,
        'bytes': (sent, formula),
        'stored': (stored, [shard, shard]),
        'traces after the first step': (again, 0),
    }


def _compare(actual: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for name, tree in expected.items():
        # What is 0 but for rounding, as the gradient of a bias of keys, is compared with the largest entry of all.
        noise = 4 * np.finfo(np.float64).eps * max(np.abs(x).max(initial=0) for x in jax.tree.leaves(tree))
        for (path, want), got in zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(actual[name]), strict=True
        ):
            largest = np.abs(want).max() if np.size(want) else 0.0
            off = np.abs(np.asarray(got) - want).max() if np.size(want) else 0.0
            if not off <= max(tolerance * largest, noise):
                where = f' of {meshes.path_text(path)!r}' if path else ''
                raise LawBroken(f'{name}{where} is off by {off:.3g}, and its largest entry is {largest:.3g}')


def _wide(x: Any) -> Any:
    kind = jnp.result_type(x)
    return np.asarray(x, np.float64) if jnp.issubdtype(kind, jnp.floating) else x


def _stored(tree: Any) -> int:
    """Bytes of the first device's shards."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def _text(value: Any) -> str:
    return str({name: float(x) for name, x in value.items()} if isinstance(value, dict) else value)
