"""Expert parallelism: the devices of a worker have different experts, and each evaluates its part of the batch.

GShard (Lepikhin et al. 2021, arXiv 2006.16668). Parameters that the model's rules shard over the axis `expert` stay on
their devices, to which tokens go and return (see `jaxdist.models.experts`), and so do their gradients. All others are
whole, and their gradients are added up.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax

from jaxdist.core import collectives
from jaxdist.core.emulated import after
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Evaluate, OwnGradient, Partition, cast_params
from jaxdist.core.protocol import is_spec
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.models.experts import sends
from jaxdist.parallel.calls import bytes_of, calls, one_device
from jaxdist.parallel.fsdp import scalar_bytes, scattered, shards, spec_leaves
from jaxdist.parallel.pipeline import Pipelined
from jaxdist.parallel.within import on_devices


class Experts(NamedTuple):
    """The partition of a worker whose devices have different experts, and that may be divided over other axes as well.

    Attributes:
        inner: how the worker is divided over other axes.
        specs: the `PartitionSpec` of each parameter.
        size: the number of devices E.
        axis: the mesh axis.
    """

    inner: Partition
    specs: Any
    size: int
    axis: str = 'expert'

    @property
    def axes(self) -> tuple[str, ...]:
        """See `Partition.axes`."""
        return (*self.inner.axes, self.axis)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return (*self.inner.batch_axes, self.axis)

    @property
    def batch_shards(self) -> int:
        """See `Partition.batch_shards`."""
        return self.inner.batch_shards * self.size

    @property
    def loops(self) -> bool:
        """See `Partition.loops`: blocks of experts are in a loop."""
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

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        leaves = zip(jax.tree.leaves(params), spec_leaves(self.specs), strict=True)
        grads = sum(Fraction(bytes_of(x), shards(spec, sizes)) for x, spec in leaves if self.axis not in spec)
        added_up = Fraction(2 * (self.size - 1), self.size) * (grads + scalar_bytes(loss, params, batch))
        part = one_device(batch, sizes['workers'] * self.batch_shards)
        seen = jax.eval_shape(lambda params: cast_params(params, compute), params)
        tokens = Fraction(0)
        for name in ('to_rooms', 'as_rows'):
            for call in calls(name, loss, seen, part):
                there, back, gradient = sends(name, self.size, [bytes_of(x) for x in call.outputs])
                # What dropless experts return is a sum, which a block that is evaluated again does not need; stages
                # are evaluated again as a whole (in the traced program: the compiler drops the last one).
                returns = call.forwards if name == 'to_rooms' or isinstance(self.inner, Pipelined) else 1
                tokens += call.times * (call.forwards * there + returns * back + gradient)
        others = self.inner.sends(loss, params, batch, sizes, compute)
        return {**others, self.axis: added_up + tokens * self.inner.repeats / sizes.get('context', 1)}

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The parameters as the loss sees them: of each device's experts, and all others."""
        seen: Params = collectives.pvary(self.inner.gather(params, compute, key), self.axis)
        return after(seen, seen)

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the sum of gradients; tokens of all devices have gone to each expert."""
        total = lambda spec, g: g if self.axis in spec else scattered(g, spec, self.axis)  # noqa: E731
        return jax.tree.map(total, self.specs, self.inner.scatter(after(grads, grads), key), is_leaf=is_spec)

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate` on every device; see `on_devices`."""
        return on_devices(evaluate, self.axes, self.specs, self.batch_axes, (params, state, batch, key), graded)


def with_experts(inner: Partition, specs: Any, size: int) -> Experts:
    """The partition of a worker over an axis for experts.

    Args:
        inner: how the worker is divided over other axes.
        specs: the `PartitionSpec` of each parameter.
        size: the number of devices.

    Raises:
        InputError: no parameter is sharded over the axis.

    >>> from jaxdist.core.partition import Whole
    >>> with_experts(Whole(), {'w': jax.P()}, 2)
    Traceback (most recent call last):
    jaxdist.InputError: no rule of the model shards a parameter over mesh axis 'expert', which has 2 devices: take a
    model with experts, such as MixtureTransformer, or another axis
    """
    if not any('expert' in spec for spec in spec_leaves(specs)):
        raise InputError(
            f"no rule of the model shards a parameter over mesh axis 'expert', which has {size} devices: take a model "
            'with experts, such as MixtureTransformer, or another axis'
        )
    return Experts(inner, specs, size)
