"""Context parallelism: the devices of a worker share each sequence, and evaluate the loss of their positions.

Each device has all parameters that its other axes leave it, takes its own positions of a batch (see
`jaxdist.models.attention.local`) and reaches the others' keys and values in `attend`. Sums and gradients are added up.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax

from jaxdist.core import collectives
from jaxdist.core.emulated import after
from jaxdist.core.partition import Evaluate, OwnGradient, Partition, cast_params
from jaxdist.core.protocol import is_spec
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.models.attention import Attention, attention_by
from jaxdist.models.attention.attend import sends
from jaxdist.parallel.calls import bytes_of, calls, one_device
from jaxdist.parallel.fsdp import scalar_bytes, scattered, shards, spec_leaves
from jaxdist.parallel.within import on_devices


class Sequences(NamedTuple):
    """The partition of a worker whose devices share sequences, and that may be divided over other axes as well.

    Each device sends 2 (C - 1) / C of the bytes of its shards of gradients, and what attention sends: see
    `jaxdist.models.attention`.

    Attributes:
        inner: how the worker is divided over other axes.
        specs: the `PartitionSpec` of each parameter.
        size: the number of devices C that share a sequence.
        attention: how they compute attention.
        axis: the mesh axis.
        loops: see `Partition`.
    """

    inner: Partition
    specs: Any
    size: int
    attention: Attention = 'ring'
    axis: str = 'context'
    loops: bool = True

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that the partition divides itself."""
        return (*self.inner.axes, self.axis)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return self.inner.batch_axes

    @property
    def batch_shards(self) -> int:
        """See `Partition.batch_shards`: devices that share a sequence have the same examples."""
        return self.inner.batch_shards

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

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        leaves = zip(jax.tree.leaves(params), spec_leaves(self.specs), strict=True)
        grads = sum(Fraction(x.size * x.dtype.itemsize, shards(spec, sizes)) for x, spec in leaves)
        scalars = scalar_bytes(loss, params, batch)
        others = self.inner.sends(loss, params, batch, sizes, compute)
        attention = self._attention(loss, params, batch, sizes, compute)
        return {**others, self.axis: Fraction(2 * (self.size - 1), self.size) * (grads + scalars) + attention}

    def _attention(self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int], compute: Any) -> Fraction:
        """The bytes of all calls of `attend`, and of the balance of experts."""
        part = one_device(batch, sizes['workers'] * self.batch_shards)
        seen = jax.eval_shape(lambda params: cast_params(params, compute), params)
        total, model = Fraction(0), sizes.get('model', 1)
        for call in calls('whole', loss, seen, part):
            queries, keys = call.inputs[:2]
            share = self.size * (1 if keys.shape[2] % model else model)
            each = [Fraction(bytes_of(x), share) for x in (queries, keys)]
            forward, backward = sends(self.attention, self.size, *each)
            total += call.times * (call.forwards * forward + backward)
        for call in calls('balance_of', loss, seen, part):  # the choices of a sequence are counted
            counts = Fraction(2 * (self.size - 1), self.size) * bytes_of(call.outputs[1])
            total += call.times * call.forwards * counts
        return total * self.inner.repeats

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The parameters as the loss sees them, typed so that gradients are this device's terms."""
        seen: Params = collectives.pvary(self.inner.gather(params, compute, key), self.axis)
        return after(seen, seen)

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the sum of gradients over all devices."""
        mine = self.inner.scatter(after(grads, grads), key)
        # As `scattered` does, with the axis in no spec: in the gradient's dtype on a TPU too.
        total = lambda spec, g: scattered(g, spec, self.axis)  # noqa: E731
        return jax.tree.map(total, self.specs, mine, is_leaf=is_spec)

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate` on every device; see `on_devices`."""
        with attention_by(self.attention):
            return on_devices(
                evaluate, self.axes, self.specs, self.batch_axes, (params, state, batch, key), graded, self.axis
            )
