"""Pipelines inside a worker: each stage has a part of a model's blocks, and microbatches walk from stage to stage."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.core import mesh as meshes
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Evaluate, cast_params
from jaxdist.core.protocol import is_spec
from jaxdist.core.shards import on_shards
from jaxdist.core.types import Batch, Loss, Params, Parts
from jaxdist.parallel.fsdp import FullySharded, scalar_bytes, shards, spec_leaves
from jaxdist.parallel.schedules import Schedule, ScheduleName
from jaxdist.parallel.stages import AXIS, BLOCKS, pipeline_gradient
from jaxdist.parallel.within import on_devices


class Pipeline(NamedTuple):
    """How a worker's batch walks through the stages of a mesh.

    Attributes:
        parts: the model in parts.
        microbatches: parts of a worker's batch that follow each other. With more of them stages wait less: of a step,
            (S - 1) / (V m + S - 1) is waiting, with V chunks of blocks on each stage.
        schedule: `1f1b`, or `gpipe`, which keeps the inputs of all microbatches.
    """

    parts: Parts
    microbatches: int = 1
    schedule: ScheduleName = '1f1b'


class Pipelined(NamedTuple):
    """The partition of a worker over pipeline stages, each of which may be fully sharded.

    Each device sends 2 (V m + S - 1) times the activations of a microbatch over the stages, and all-reduces the
    gradient of the edge.

    Attributes:
        specs: the `PartitionSpec` of each parameter.
        pipeline: the pipeline.
        plan: its schedule.
        sharded: how each stage is sharded; None if it is not.
        loops: see `Partition`.
    """

    specs: Any
    pipeline: Pipeline
    plan: Schedule
    sharded: FullySharded | None = None
    loops: bool = True

    @property
    def axes(self) -> tuple[str, ...]:
        """See `Partition.axes`."""
        return (AXIS, self.sharded.axis) if self.sharded else (AXIS,)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return self.sharded.batch_axes if self.sharded else ()

    @property
    def batch_shards(self) -> int:
        """The devices of a stage over which it is fully sharded."""
        return self.sharded.size if self.sharded else 1

    @property
    def repeats(self) -> Fraction:
        """How often each stage evaluates its share of blocks, in batches: waiting stages compute too."""
        return Fraction(self.plan.passes, self.plan.work * self.plan.stages)

    @property
    def microbatches(self) -> int:
        """Parts of the batch of a device."""
        return self.plan.microbatches

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        rows = sizes['workers'] * self.batch_shards * sizes.get('expert', 1) * self.plan.microbatches
        micro = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // rows, *x.shape[1:]), x.dtype), batch)
        first = lambda edge, micro: self.pipeline.parts.first(cast_params(edge, compute), micro)  # noqa: E731
        passed = jax.tree.leaves(jax.eval_shape(first, params['edge'], micro))
        share = Fraction(2 * self.plan.passes, sizes.get('context', 1))  # of devices that share sequences
        walked = share * sum(x.size * x.dtype.itemsize for x in passed)
        edge = sum(
            Fraction(x.size * x.dtype.itemsize, shards(spec, sizes))
            for x, spec in zip(jax.tree.leaves(params['edge']), spec_leaves(self.specs['edge']), strict=True)
        )
        scalars = scalar_bytes(loss, params, batch)
        sharded = self.sharded.sends(loss, params, batch, sizes, compute) if self.sharded else {}
        return {AXIS: walked + Fraction(2 * (self.plan.stages - 1), self.plan.stages) * (edge + scalars), **sharded}

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """This stage's parameters, whole."""
        return self.sharded.gather(params, compute, key) if self.sharded else cast_params(params, compute)

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the sum of gradients over the devices of a stage, and for the edge over the stages as well."""
        mine = self.sharded.scatter(grads, key) if self.sharded else grads
        total = lambda spec, g: on_shards(lambda g: lax.psum(g, AXIS), spec)(g)  # noqa: E731
        edge = jax.tree.map(total, self.specs['edge'], mine['edge'], is_leaf=is_spec)
        return {'edge': edge, BLOCKS: mine[BLOCKS]}

    def own_gradient(
        self, params: Params, batch: Batch, like: Params, compute: jax.typing.DTypeLike | None
    ) -> tuple[Any, Params]:
        """The sums, the count and the gradient of the pipeline."""
        del compute  # the parameters are gathered, and cast
        return pipeline_gradient(self.pipeline.parts, self.plan, params, batch, like)

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate` on every device; see `on_devices`."""
        return on_devices(evaluate, self.axes, self.specs, self.batch_axes, (params, state, batch, key), graded)


def check_rows(params: Params, specs: Any, chunks: int = 1) -> None:
    """Checks that these are the parameters of a model in parts, whose rows of blocks no rule shards.

    Args:
        params: the parameters' shapes.
        specs: the `PartitionSpec` of each parameter.
        chunks: the chunks in which blocks are stored.

    Raises:
        InputError: they are not; the rows are evaluated one after the other, or divided among stages.

    >>> check_rows({'edge': (), 'blocks': jax.numpy.ones((4, 2))}, {'edge': (), 'blocks': P('fsdp')})
    Traceback (most recent call last):
    jaxdist.InputError: a rule shards dim 0 of the blocks, which has their rows, over 'fsdp': shard another dim
    """
    if not isinstance(params, dict) or set(params) != {'edge', BLOCKS}:
        raise InputError(f"the parameters of a model in parts are {{'edge': ..., '{BLOCKS}': ...}}")
    for spec in spec_leaves(specs[BLOCKS]):
        for dim, axis in enumerate(spec[: 1 + (chunks > 1)]):
            if axis not in (None, AXIS):
                raise InputError(
                    f'a rule shards dim {dim} of the blocks, which has their rows, over {axis!r}: shard another dim'
                )


def pipelined(
    params: Params, specs: Any, sizes: Mapping[str, int], pipeline: Pipeline | None
) -> tuple[Any, Callable[[Any, FullySharded | None], Pipelined]]:
    """The specs with blocks sharded over the stages, and what makes the partition of the final specs.

    Args:
        params: the parameters' shapes.
        specs: the `PartitionSpec` of each parameter, by the model's rules.
        sizes: the mesh's sizes by axis.
        pipeline: the pipeline.

    Raises:
        InputError: the model has no parts, or the stages do not divide its blocks; or see `check_rows`.

    >>> parts = Parts(first=lambda *args: None, block=lambda *args: None, last=lambda *args: None)
    >>> params = {'edge': (), 'blocks': jax.ShapeDtypeStruct((6, 3), 'float32')}
    >>> pipelined(params, {'edge': (), 'blocks': P()}, {'stage': 2}, Pipeline(parts))[0]
    {'edge': (), 'blocks': P('stage',)}
    >>> pipelined(params, {'edge': (), 'blocks': P()}, {'stage': 4}, Pipeline(parts))
    Traceback (most recent call last):
    jaxdist.InputError: 4 stages do not divide the blocks: blocks (6, 3) has 6 blocks
    """
    stages = sizes[AXIS]
    if pipeline is None:
        raise InputError(
            f'the mesh has {stages} pipeline stages, and the model no parts, which say what a stage computes: take a '
            'model with `parts`, such as Transformer(stacked=True) or one of from_parts'
        )
    chunks = pipeline.parts.chunks
    rows = int(chunks > 1)
    check_rows(params, specs, chunks)
    for path, x in jax.tree_util.tree_leaves_with_path(params[BLOCKS]):
        if x.ndim <= rows or x.shape[rows] % stages:
            name = '/'.join(filter(None, (BLOCKS, meshes.path_text(path))))
            of = f' of each of {chunks} chunks' if chunks > 1 else ''
            spare = f', {pipeline.parts.spare} of them spare' if pipeline.parts.spare else ''
            count = f'{x.shape[rows]} blocks{spare}' if x.ndim > rows else 'no dim of blocks'
            raise InputError(f'{stages} stages do not divide the blocks{of}: {name} {x.shape} has {count}')
    on_stages = lambda spec: P(*(None,) * rows, AXIS, *spec[rows + 1 :])  # noqa: E731
    blocks = jax.tree.map(on_stages, specs[BLOCKS], is_leaf=is_spec)
    plan = Schedule(stages, pipeline.microbatches, pipeline.schedule, chunks)
    return {**specs, BLOCKS: blocks}, lambda full, sharded: Pipelined(full, pipeline, plan, sharded)
