"""Context parallelism: the devices of a worker share each sequence, and evaluate the loss of their positions.

Each device has all parameters that its other axes leave it, takes its own positions of a batch (see
`jaxdist.models.attention.local`) and reaches the others' keys and values in `attend`. Sums and gradients are added up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax

from jaxdist.core.partition import Evaluate
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.models.attention import Attention, attention_by
from jaxdist.models.attention.attend import sends
from jaxdist.parallel.around import Around
from jaxdist.parallel.calls import bytes_of
from jaxdist.parallel.within import on_devices


@dataclass(frozen=True)
class Sequences(Around):
    """The partition of a worker whose devices share sequences, and that may be divided over other axes as well.

    Each device sends 2 (C - 1) / C of the bytes of its shards of gradients, and what attention sends: see
    `jaxdist.models.attention`. See `Around` for the other attributes.

    Attributes:
        attention: how devices compute attention.
    """

    axis: str = 'context'
    attention: Attention = 'ring'

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return self.inner.batch_axes

    @property
    def batch_shards(self) -> int:
        """See `Partition.batch_shards`: devices that share a sequence have the same examples."""
        return self.inner.batch_shards

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        total, shares, model = Fraction(0), sizes['workers'] * self.batch_shards, sizes.get('model', 1)
        for call in self.calls_of('whole_attention', loss, params, batch, shares, compute):
            queries, keys = call.inputs[:2]
            share = self.size * (1 if keys.shape[2] % model else model)
            each = [Fraction(bytes_of(x), share) for x in (queries, keys)]
            forward, backward = sends(self.attention, self.size, *each)
            total += call.times * (call.forwards * forward + backward)
        for call in self.calls_of('balance_of', loss, params, batch, shares, compute):
            counts = Fraction(2 * (self.size - 1), self.size) * bytes_of(call.outputs[1])  # the choices of a sequence
            total += call.times * call.forwards * counts
        total *= self.inner.repeats
        others = self.inner.sends(loss, params, batch, sizes, compute)
        return {**others, self.axis: self.added_up(loss, params, batch, sizes) + total}

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate` on every device; see `on_devices`."""
        with attention_by(self.attention):
            return on_devices(
                evaluate, self.axes, self.specs, self.batch_axes, (params, state, batch, key), graded, self.axis
            )
