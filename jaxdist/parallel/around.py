"""The common part of partitions that divide a worker over one axis more, around another partition."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax

from jaxdist.core import collectives
from jaxdist.core.emulated import after
from jaxdist.core.partition import OwnGradient, Partition, cast_params
from jaxdist.core.protocol import is_spec
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.parallel.calls import Call, bytes_of, calls, one_device
from jaxdist.parallel.fsdp import scalar_bytes, scattered, shards, spec_leaves


@dataclass(frozen=True)
class Around:
    """A partition around another one, whose axis leaves parameters whole but for those that are sharded over it.

    Attributes:
        inner: how the worker is divided over other axes.
        specs: the `PartitionSpec` of each parameter.
        size: the number of devices n of the axis.
        axis: the mesh axis.
    """

    inner: Partition
    specs: Any
    size: int
    axis: str

    @property
    def axes(self) -> tuple[str, ...]:
        """See `Partition.axes`."""
        return (*self.inner.axes, self.axis)

    @property
    def loops(self) -> bool:
        """See `Partition.loops`: attention and experts are in blocks, and blocks in loops."""
        return True

    @property
    def repeats(self) -> Fraction:
        """See `Partition.repeats`."""
        return self.inner.repeats

    @property
    def microbatches(self) -> int:
        """See `Partition.microbatches`."""
        return self.inner.microbatches

    @property
    def own_gradient(self) -> OwnGradient | None:
        """See `Partition.own_gradient`."""
        return self.inner.own_gradient

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The parameters as the loss sees them, typed so that gradients are this device's terms."""
        seen: Params = collectives.pvary(self.inner.gather(params, compute, key), self.axis)
        return after(seen, seen)

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the sum of gradients; what is sharded over the axis is it already."""
        total = lambda spec, g: g if self.axis in spec else scattered(g, spec, self.axis)  # noqa: E731
        return jax.tree.map(total, self.specs, self.inner.scatter(after(grads, grads), key), is_leaf=is_spec)

    def added_up(self, loss: Loss, params: Params, batch: Batch, sizes: Any) -> Fraction:
        """The bytes that one device sends over the axis to add up sums, the count and gradients."""
        leaves = zip(jax.tree.leaves(params), spec_leaves(self.specs), strict=True)
        grads = sum(Fraction(bytes_of(x), shards(spec, sizes)) for x, spec in leaves if self.axis not in spec)
        return Fraction(2 * (self.size - 1), self.size) * (grads + scalar_bytes(loss, params, batch))

    def calls_of(
        self, name: str, loss: Loss, params: Params, batch: Batch, shares: int, compute: jax.typing.DTypeLike | None
    ) -> list[Call]:
        """The calls of a function in the loss of a device, whose part of the batch is one of so many shares."""
        seen = jax.eval_shape(lambda params: cast_params(params, compute), params)
        return calls(name, loss, seen, one_device(batch, shares))
