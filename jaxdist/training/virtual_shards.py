"""Virtual shards of an experiment: its update line, and the evaluation of held-out data by the same shards."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdist import line
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.pairwise import psum_pairs, sum_pairs
from jaxdist.core.types import Batch
from jaxdist.core.virtual_shards import COMPILER_OPTIONS, check_shards, one_shard, split
from jaxdist.core.workers import Workers
from jaxdist.training.experiment import Experiment


def after_mean(update: str) -> str:
    """The rest of an update line that begins with `mean()`, which virtual shards compute themselves.

    Raises:
        InputError: the line begins with something else.

    >>> after_mean('mean() | clip(1.0) | sgd(0.1)'), after_mean('mean()')
    ('clip(1.0) | sgd(0.1)', 'identity()')
    """
    first, rest = line.split_first(update)
    if first != 'mean()':
        raise InputError(
            f'with virtual_shards the update line begins with mean(), and this one with {first}. Compression, delays, '
            'clipping or local training of each worker depend on the number of workers; only the exact mean does not. '
            'Take mean() | ..., or virtual_shards=0'
        )
    return rest or 'identity()'


def check_virtual_shards(experiment: Experiment, workers: Workers) -> None:
    """Checks an experiment's virtual shards, if it has any, as far as is possible without data and a model.

    Raises:
        InputError: they do not fit the update line, the workers or the batch.

    >>> from jaxdist.core.workers import abstract
    >>> check_virtual_shards(Experiment(virtual_shards=8), abstract(4))
    """
    if experiment.virtual_shards:
        after_mean(experiment.update)
        check_shards(experiment.virtual_shards, experiment.batch, workers, experiment.accumulate)


def shard_scores(
    evaluate: Callable[[Any, Batch], Any], shards: int, workers: Workers
) -> Callable[[Any, Batch], tuple[Any, Any, Any]]:
    """`(params, batch) -> (sums, count, rows)`, jitted, of each shard by itself, and added in the order of a tree.

    Args:
        evaluate: `(params, batch) -> (sums, count, rows)`, sums over the batch.
        shards: the number of virtual shards.
        workers: the workers, on a mesh.

    >>> from jaxdist.core.mesh import make
    >>> from jaxdist.core.workers import on_mesh
    >>> evaluate = lambda params, batch: ({'loss': params * batch['x'].sum()}, batch['x'].size, {})
    >>> score = shard_scores(evaluate, 4, on_mesh(make({'workers': 2})))
    >>> sums, count, _ = score(jnp.float32(2), {'x': jnp.arange(8.0)})
    >>> float(sums['loss']), float(count)
    (56.0, 8.0)
    """
    each = shards // workers.count

    def arrays(params: Any, part: Batch) -> Any:
        sums, count, rows = evaluate(params, part)
        return jax.tree.map(jnp.asarray, sums), jnp.asarray(count, float), rows

    def on_worker(params: Any, batch: Batch, true: jax.Array) -> Any:
        local, parts = collectives.pvary(params, workers.axis), split(batch, each)
        one = lambda i: one_shard(lambda part, _: arrays(local, part), parts, i, true)  # noqa: E731
        sums, count, rows = lax.map(one, jnp.arange(each))
        total, count = psum_pairs(jax.tree.map(sum_pairs, (sums, count)), workers.axis)
        return total, count, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    axis, mesh = workers.axis, workers.mesh
    code = jax.shard_map(on_worker, mesh=mesh, in_specs=(P(), P(axis), P()), out_specs=(P(), P(), P(axis)))
    whole = NamedSharding(mesh, P())  # type: ignore[arg-type]
    score = jax.jit(code, out_shardings=whole, compiler_options=COMPILER_OPTIONS)
    return lambda params, batch: score(params, batch, np.bool_(True))
