"""Expert parallelism: the devices of a worker have different experts, and each evaluates its part of the batch.

GShard (Lepikhin et al. 2021, arXiv 2006.16668). Parameters that the model's rules shard over the axis `expert` stay on
their devices, to which tokens go and return (see `jaxdist.models.experts`), and so do their gradients. All others are
whole, and their gradients are added up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax

from jaxdist.core.errors import InputError
from jaxdist.core.partition import Evaluate, Partition
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.models.experts import sends
from jaxdist.parallel.around import Around
from jaxdist.parallel.calls import bytes_of
from jaxdist.parallel.fsdp import spec_leaves
from jaxdist.parallel.pipeline import Pipelined
from jaxdist.parallel.within import on_devices


@dataclass(frozen=True)
class Experts(Around):
    """The partition of a worker whose devices have different experts, and that may be divided over other axes as well.

    See `Around` for its attributes.
    """

    axis: str = 'expert'

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return (*self.inner.batch_axes, self.axis)

    @property
    def batch_shards(self) -> int:
        """See `Partition.batch_shards`."""
        return self.inner.batch_shards * self.size

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        tokens, shares = Fraction(0), sizes['workers'] * self.batch_shards
        for name in ('to_rooms', 'as_rows'):
            for call in self.calls_of(name, loss, params, batch, shares, compute):
                there, back, gradient = sends(name, self.size, [bytes_of(x) for x in call.outputs])
                # What dropless experts return is a sum, which a block that is evaluated again does not need; stages
                # are evaluated again as a whole (in the traced program: the compiler drops the last one).
                returns = call.forwards if name == 'to_rooms' or isinstance(self.inner, Pipelined) else 1
                tokens += call.times * (call.forwards * there + returns * back + gradient)
        tokens *= self.inner.repeats / sizes.get('context', 1)
        others = self.inner.sends(loss, params, batch, sizes, compute)
        return {**others, self.axis: self.added_up(loss, params, batch, sizes) + tokens}

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
