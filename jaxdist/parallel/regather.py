"""Fully sharded workers that keep no whole block: each is gathered when it is evaluated, forward and backward.

ZeRO, stage 3 (Rajbhandari et al. 2020, arXiv 1910.02054), for models in parts. A gather inside of a block that is
evaluated again for the gradient needs no policy of what to keep: only the inputs of blocks are.
"""

import functools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.emulated import after
from jaxdist.core.gradient import conjugate
from jaxdist.core.partition import Evaluate, cast_params
from jaxdist.core.protocol import is_spec
from jaxdist.core.types import Batch, Loss, Params, Parts
from jaxdist.models.attention.zigzag import AXIS as SEQUENCES
from jaxdist.models.parts import rows_of
from jaxdist.parallel.fsdp import FullySharded, entry_bytes, gathered, scattered
from jaxdist.parallel.stages import BLOCKS


class Regathered(NamedTuple):
    """The partition of a fully sharded worker whose blocks are gathered twice, and never all at once.

    Each device sends (F - 1) / F of the blocks' bytes for each gather, in the dtype in which the loss sees them, and
    for the gradient, in the parameters' dtype; each part of an accumulation does. Of all others see `FullySharded`.

    Attributes:
        sharded: how the worker is sharded.
        parts: the model.
        accumulate: parts that each device's batch is taken in, each with its gathers.
    """

    sharded: FullySharded
    parts: Parts
    accumulate: int = 1
    loops: bool = True
    repeats: Fraction = Fraction(1)
    microbatches: int = 1

    @property
    def axes(self) -> tuple[str, ...]:
        """See `Partition.axes`."""
        return self.sharded.axes

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return self.sharded.batch_axes

    @property
    def batch_shards(self) -> int:
        """F: each device evaluates its part of the batch."""
        return self.sharded.size

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        axis, share = self.sharded.axis, Fraction(self.sharded.size - 1, self.sharded.size)
        blocks = functools.partial(entry_bytes, params[BLOCKS], self.sharded.specs[BLOCKS], axis, sizes, sharded=True)
        each, once = 2 * blocks(compute) + blocks(None), blocks(compute) + blocks(None)
        kept = self.sharded.sends(loss, params, batch, sizes, compute)[axis]
        rows = math.prod(jax.tree.leaves(params[BLOCKS])[0].shape[: 1 + (self.parts.chunks > 1)])
        used = Fraction(rows - self.parts.spare, rows)
        return {axis: kept + share * (self.accumulate * each * used - once)}

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The whole edge, and this device's shards of blocks."""
        axis, specs = self.sharded.axis, self.sharded.specs
        whole = lambda spec, x: gathered(collectives.pvary(x, axis), spec, axis)  # noqa: E731
        edge = jax.tree.map(whole, specs['edge'], cast_params(params['edge'], compute), is_leaf=is_spec)
        return {'edge': edge, BLOCKS: collectives.pvary(params[BLOCKS], axis)}

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the sum of gradients; those of sharded blocks are it already."""
        axis, specs = self.sharded.axis, self.sharded.specs
        rest = lambda spec, g: g if axis in spec else scattered(g, spec, axis)  # noqa: E731
        edge = jax.tree.map(lambda spec, g: scattered(g, spec, axis), specs['edge'], grads['edge'], is_leaf=is_spec)
        return {'edge': edge, BLOCKS: jax.tree.map(rest, specs[BLOCKS], grads[BLOCKS], is_leaf=is_spec)}

    def own_gradient(
        self, params: Params, batch: Batch, like: Params, compute: jax.typing.DTypeLike | None
    ) -> tuple[Any, Params]:
        """The derivative of the loss, with a gather in each block."""
        dims = 1 + (self.parts.chunks > 1)
        rows = jax.tree.map(lambda spec: P(*spec[dims:]), self.sharded.specs[BLOCKS], is_leaf=is_spec)

        def block(row: Any, x: Any) -> Any:
            whole = lambda spec, p: regathered(p, spec, self.sharded.axis, compute)  # noqa: E731
            here = jax.tree.map(whole, rows, row, is_leaf=is_spec)
            return self.parts.block(after(here, here) if collectives.is_manual(SEQUENCES) else here, x)

        def loss(params: Params) -> Any:
            x, step = self.parts.first(params['edge'], batch), jax.checkpoint(block)
            blocks = rows_of(self.parts, params[BLOCKS])
            x = lax.scan(lambda x, row: (step(row, x), None), x, blocks)[0]
            sums, count = self.parts.last(params['edge'], x, batch)
            return sums['loss'], (sums, lax.stop_gradient(jnp.asarray(count, float)))

        (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return terms, jax.tree.map(lambda g, p: g.astype(p.dtype), conjugate(grads), like)

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """See `FullySharded.run`."""
        return self.sharded.run(evaluate, params, state, batch, key, graded)


def regathered(x: jax.Array, spec: P, axis: str, compute: jax.typing.DTypeLike | None) -> jax.Array:
    """A whole parameter from this device's shard, whose gradient is the shard of the sum over the axis.

    Args:
        x: the shard.
        spec: the parameter's `PartitionSpec`.
        axis: the mesh axis, which is manual.
        compute: the dtype in which it is gathered; None for its own. The sum is in its own.

    >>> mesh = jax.make_mesh((2,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> square = lambda x: jnp.sum(regathered(x, P('fsdp'), 'fsdp', None) ** 2)
    >>> jax.shard_map(jax.grad(square), mesh=mesh, in_specs=P('fsdp'), out_specs=P('fsdp'))(jnp.arange(4.0)).tolist()
    [0.0, 4.0, 8.0, 12.0]
    """

    def seen(x: jax.Array) -> jax.Array:
        cast: Any = cast_params(x, compute)
        return gathered(cast, spec, axis)

    if axis not in spec:
        return seen(x)
    # Its derivative is given, since JAX has none of the nested shard_map over the compiler's axes.
    whole = jax.custom_vjp(seen)
    whole.defvjp(lambda x: (whole(x), None), lambda _, g: (scattered(g.astype(x.dtype), spec, axis),))
    out: jax.Array = whole(x)
    return out
