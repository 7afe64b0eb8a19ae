"""Virtual shards: a number of parts of the batch that stays, so that a step has the same bits on any number of workers.

The batch is divided into V shards, whatever the number of workers W is. Each worker evaluates its V / W shards one
after the other, each compiled in the same way, and the gradients and sums of all shards are added in the order of one
binary tree (`jaxdist.core.pairwise`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.conditional import when
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import conjugate, evaluate_loss, inverse
from jaxdist.core.layout import Layout
from jaxdist.core.objective import Lookahead, ObjectiveOutput, WorkerLoss
from jaxdist.core.pairwise import psum_pairs, sum_terms
from jaxdist.core.partition import cast_params
from jaxdist.core.types import Batch, Params, Variables
from jaxdist.core.workers import Workers

COMPILER_OPTIONS = {'xla_disable_hlo_passes': 'cse'}
"""XLA partitions a program only if it is for several devices, and only then looks for common subexpressions before it
simplifies; what it simplifies depends on them. Without that pass the program of one device is simplified alike: with it
a division of a transformer's softmax became a product with the inverse on one device alone (jax 0.10.2, CPU)."""


class VirtualShards(NamedTuple):
    """The plain loss, as an objective whose gradient is the mean over the examples of all workers; replicated.

    Its bits do not depend on the number of workers. Sums and counts are added before the one division, so that shards
    may have different counts. A shard's random key depends on its index, as a worker's does on the worker's.

    Attributes:
        shards: the number of shards V, a power of two that the number of workers divides.

    >>> VirtualShards(8).weighted
    True
    """

    shards: int
    weighted: bool = True
    metric_names: tuple[str, ...] = ()
    state_name: str = ''

    def check(self, params: Params, batch: Batch, workers: Workers, accumulate: int) -> None:
        """Raises InputError if the shards do not fit the workers, the batch or the model."""
        check_shards(self.shards, len(jax.tree.leaves(batch)[0]), workers, accumulate)
        if isinstance(params, Variables):
            raise InputError(
                f'virtual_shards={self.shards}: a model state goes from one part of the batch to the next, so it '
                'depends on the number of workers. Take a model without a state'
            )

    def check_layout(self, layout: Layout, diverge: bool) -> None:
        """Raises InputError if workers diverge."""
        if diverge:
            raise InputError(
                f'virtual_shards={self.shards}: every worker gets the mean gradient, and workers of this update train '
                'locally. Take an update without local training, or virtual_shards=0'
            )

    def check_resize(self, before: int, now: int) -> None:
        """Accepts everything: the state is replicated."""

    def begin(self, params: Params, batch: Batch) -> Any:
        """No state."""
        del params, batch
        return ()

    def gradient(
        self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array,
        lookahead: Lookahead,
    ) -> ObjectiveOutput:  # fmt: skip
        """The gradient of the mean loss of all workers; the first worker has all sums, and the others have zeros."""
        del lookahead
        each = self.shards // collectives.axis_size(loss.axis)
        first = collectives.axis_index(loss.axis) * each
        local, parts = collectives.pvary(params, loss.axis), split(batch, each)
        true = step >= 0

        def term(i: jax.Array) -> Any:
            evaluate = lambda part, i: _gradient_of_sum(loss, local, part, jax.random.fold_in(key, first + i))  # noqa: E731
            return one_shard(evaluate, parts, i, true)

        sums, count, grads = psum_pairs(sum_terms(term, each.bit_length() - 1), loss.axis)
        # Apart from the code around it as well: a product that is compiled into the sums of an optimiser rounds less.
        grads = when(true, lambda grads: jax.tree.map(lambda g: g * inverse(count).astype(g.dtype), grads), grads)
        sums, count = jax.tree.map(lambda x: jnp.where(first == 0, x, 0), (sums, count))
        return ObjectiveOutput(sums, count, grads, state, {})

    def after(self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array) -> Any:
        """No state."""
        del loss, params, step, batch, key
        return state


def check_shards(shards: int, rows: int, workers: Workers, accumulate: int = 1) -> None:
    """Checks that virtual shards fit the workers and the batch.

    Args:
        shards: the number of virtual shards.
        rows: the number of examples in a batch of all workers.
        workers: the workers.
        accumulate: parts that a worker's batch is taken in.

    Raises:
        InputError: they do not fit; the message says what would.

    >>> from jaxdist.core.workers import abstract
    >>> check_shards(8, 64, abstract(3))
    Traceback (most recent call last):
    jaxdist.InputError: virtual_shards=8 cannot be divided among 3 workers: take a power of two that they divide
    """
    given = f'virtual_shards={shards}'
    if shards < 1 or shards & (shards - 1):
        raise InputError(f'{given} must be a power of two, such as 8, or 0 for none')
    if workers.mesh is None:
        raise InputError(
            f'{given}: simulated workers are evaluated all at once, which rounds in another way. Train on one device, '
            'with --mesh.workers 1 and without --simulate: the result is that of any number of workers'
        )
    if others := [name for name in workers.mesh.shape if name != workers.axis]:
        raise InputError(
            f'{given}: the devices along the mesh axes {others} add their parts in the order that the compiler '
            'chooses. Leave these axes out: the mesh has the worker axis alone'
        )
    if shards % workers.count:
        raise InputError(
            f'{given} cannot be divided among {workers.count} workers: take a power of two that they divide'
        )
    if accumulate > 1:
        raise InputError(
            f'{given}: a worker takes its shards one after the other already. Leave accumulate={accumulate} out, and '
            'take more virtual shards for less memory'
        )
    if rows % shards:
        fits = f'{rows // shards * shards} or ' if rows > shards else ''
        raise InputError(
            f'a batch of {rows} examples cannot be divided into {given}: {fits}{(rows // shards + 1) * shards} would do'
        )


def split(batch: Batch, count: int) -> Batch:
    """The batch [B, ...] as parts [count, B / count, ...].

    >>> split({'x': jnp.ones((8, 3))}, 4)['x'].shape
    (4, 2, 3)
    """
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)


def one_shard(fn: Callable[[Batch, jax.Array], Any], parts: Batch, i: jax.Array, true: jax.Array) -> Any:
    """`fn(part i, i)`, compiled apart from the code around it.

    It is the body of a loop that runs once, which the compiler does not know. Else it would be compiled with the code
    around it where a worker has one shard, and operations that are fused round in another way.

    Args:
        fn: returns a pytree of arrays.
        parts: arrays [n, ...].
        i: the index of the part, an int32 scalar.
        true: a bool scalar that is true, though the compiler cannot know it.

    >>> one_shard(lambda part, i: part.sum() + i, jnp.ones((2, 3)), jnp.int32(1), jnp.bool_(True))
    Array(4., dtype=float32)
    """

    def at(i: jax.Array) -> Any:
        return fn(jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), parts), i)

    # It counts up, as the compiler moves what no trip changes out of a loop.
    body = lambda carry: (carry[0] + 1, at(carry[0]))  # noqa: E731
    return when(true, body, (i, collectives.zeros(jax.eval_shape(at, i))))[1]


def _gradient_of_sum(loss: WorkerLoss, params: Params, batch: Batch, key: jax.Array) -> Any:
    """`(sums, count, gradient of sums['loss'])` of one shard."""

    def objective(params: Params) -> tuple[jax.Array, Any]:
        sums, count, _ = evaluate_loss(loss.loss, cast_params(params, loss.compute), (), batch, key)
        return sums['loss'], (sums, lax.stop_gradient(jnp.asarray(count, float)))

    (_, (sums, count)), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return sums, count, conjugate(grads)
