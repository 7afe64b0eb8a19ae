"""The choice of a partition, by the axes of a mesh."""

from typing import Any

from jaxdist.core import mesh as meshes
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Partition, Whole
from jaxdist.core.types import Params
from jaxdist.core.workers import Workers
from jaxdist.models.attention import Attention
from jaxdist.parallel.experts import with_experts
from jaxdist.parallel.fsdp import Fsdp, fully_sharded
from jaxdist.parallel.pipeline import Pipeline, check_rows, pipelined
from jaxdist.parallel.quantised import quantised
from jaxdist.parallel.regather import Regathered
from jaxdist.parallel.sequences import Sequences


def partitioned(
    params: Params, rules: meshes.Rules, workers: Workers, pipeline: Pipeline | None = None,
    fsdp: Fsdp = Fsdp(), accumulate: int = 1, attention: Attention = 'ring',
) -> tuple[Any, Partition]:  # fmt: skip
    """The `PartitionSpec` of each parameter, and how a worker's devices divide its work.

    Args:
        params: the parameters' shapes.
        rules: sharding rules of the parameters over the mesh's other axes.
        workers: the workers.
        pipeline: how the batch walks through the stages of the mesh, if it has any.
        fsdp: how fully sharded workers gather and scatter.
        accumulate: parts that each device's batch is taken in.
        attention: how devices that share sequences compute attention.

    Raises:
        InputError: the layout does not fit the parameters or the model.

    >>> import jax
    >>> from jaxdist.core.workers import abstract
    >>> shapes, workers = {'w': jax.ShapeDtypeStruct((8, 4), 'float32')}, abstract(2, others={'fsdp': 2, 'model': 2})
    >>> partitioned(shapes, [('w', (None, 'model'))], workers)[0]
    {'w': P('fsdp', 'model')}
    """
    sizes = dict(workers.mesh.shape) if workers.mesh else {}
    specs, partition = _over_parameters(params, rules, workers, pipeline, fsdp, accumulate)
    if (experts := sizes.get('expert', 1)) > 1:
        partition = with_experts(partition, specs, experts)
    spare = pipeline.parts.spare if pipeline else 0
    if spare and sizes.get('stage', 1) > 1 and max(sizes.get(axis, 1) for axis in ('context', 'expert')) > 1:
        raise InputError('stages with spare blocks need a mesh without the axes context and expert')
    if (shared := sizes.get('context', 1)) > 1:
        partition = Sequences(partition, specs, shared, attention=attention)
    return specs, partition


def _over_parameters(
    params: Params, rules: meshes.Rules, workers: Workers, pipeline: Pipeline | None, fsdp: Fsdp, accumulate: int
) -> tuple[Any, Partition]:
    """The specs, and the partition over the axes `stage` and `fsdp`."""
    sizes = dict(workers.mesh.shape) if workers.mesh else {}
    specs, sharded, make = meshes.specs(params, rules, workers.mesh), None, None
    if sizes.get('stage', 1) > 1:
        specs, make = pipelined(params, specs, sizes, pipeline)
    if sizes.get('fsdp', 1) > 1:
        chunks = pipeline.parts.chunks if pipeline else 1
        specs, sharded = fully_sharded(params, specs, sizes, chunks=chunks)
    coded = fsdp.gathers is not None or fsdp.scatters is not None
    if fsdp.regather and (sharded is None or make is not None or pipeline is None or coded):
        raise InputError(
            'regather is for a mesh with the axis fsdp and without stages, without codecs of gathers and scatters, and '
            'for a model in parts, whose blocks are gathered one at a time, such as Transformer(stacked=True)'
        )
    if coded and (sharded is None or make is not None):
        raise InputError('codecs of gathers and scatters are for a mesh with the axis fsdp and without stages')
    if sharded is not None and fsdp.regather and pipeline is not None:
        check_rows(params, specs, pipeline.parts.chunks)
        return specs, Regathered(sharded, pipeline.parts, accumulate)
    if sharded is not None and coded:
        return specs, quantised(sharded, params, fsdp.gathers, fsdp.scatters)
    return specs, make(specs, sharded) if make else sharded or Whole()
