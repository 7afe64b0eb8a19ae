"""How the work of one worker is divided among its devices: the interface, and the worker that is evaluated as one.

A partition changes how a worker's gradient is computed, and no number of it. State, algorithms, codecs and checkpoints
see global arrays that are sharded.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxdist.core.types import Batch, Loss, Params, Variables

Evaluate = Callable[[Params, Any, Batch, jax.Array], tuple[Any, Params, Any]]
"""`(params, state, batch, key) -> (sums, gradient, state)`, with sums any pytree."""


OwnGradient = Callable[[Params, Batch, Params, Any], tuple[Any, Params]]
"""`(params, batch, like, compute) -> ((sums, count), gradient of sums['loss'])`, the gradient in the dtypes of `like`.

`params` are what `Partition.gather` returned.
"""


class Partition(Protocol):
    """The interface of a partition."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that the partition divides itself; all others inside a worker are the compiler's."""

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """Those of them that divide the examples of a batch."""

    @property
    def batch_shards(self) -> int:
        """Parts that a worker's batch is divided into, one for each of its devices that evaluate a part."""

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """The formula for the bytes that one device sends at a step, by axis, apart from what the compiler adds.

        Args:
            loss: the loss.
            params: the parameters' shapes.
            batch: the shapes of the batch of all workers.
            sizes: the mesh's sizes by axis.
            compute: the dtype in which the loss sees the parameters; None for theirs.
        """

    @property
    def loops(self) -> bool:
        """Whether it has collectives inside of loops, for which others wait on emulated devices; see `after`."""

    @property
    def repeats(self) -> Fraction:
        """How often a device evaluates the blocks of a model, as a share of all blocks and of its part of a batch."""

    @property
    def microbatches(self) -> int:
        """Parts of the batch of one device that its own gradient takes one after the other."""

    @property
    def own_gradient(self) -> OwnGradient | None:
        """What computes the gradient on a device, in place of the derivative of the loss; None if nothing does."""

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The parameters as the loss sees them, from shards, inside of `run`; the key is for codecs."""

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the gradients' sum over the worker's devices, inside of `run`."""

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate` on the devices of one worker: sums are those of its whole batch, gradients are sharded.

        Without `graded` there is no gradient, and () in its place.
        """


class Whole(NamedTuple):
    """The partition of a worker that evaluates its batch as one: on one device, or as the compiler shards it.

    >>> Whole().gather({'w': jnp.ones(1)}, jnp.bfloat16, jax.random.key(0))
    {'w': Array([1], dtype=bfloat16)}
    """

    axes: tuple[str, ...] = ()
    batch_axes: tuple[str, ...] = ()
    batch_shards: int = 1
    loops: bool = False
    repeats: Fraction = Fraction(1)
    microbatches: int = 1
    own_gradient: OwnGradient | None = None

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """Nothing."""
        del loss, params, batch, sizes, compute
        return {}

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The parameters, cast."""
        return cast_params(params, compute)

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The gradients, unchanged."""
        return grads

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate`, unchanged."""
        return evaluate(params, state, batch, key)


def cast_params(params: Params | Variables, compute: jax.typing.DTypeLike | None) -> Params | Variables:
    """The parameters with real numbers cast to the dtype `compute`; unchanged if it is None. A model state stays.

    >>> cast_params({'w': jnp.ones(1)}, jnp.bfloat16)
    {'w': Array([1], dtype=bfloat16)}
    """
    if compute is None:
        return params
    if isinstance(params, Variables):
        return params._replace(params=cast_params(params.params, compute))
    return jax.tree.map(lambda p: p.astype(compute) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)
