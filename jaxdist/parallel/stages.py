"""The walk of microbatches through the stages of a pipeline: the gradient, computed by hand.

All stages run one program, a scan over the ticks of a schedule, and pass activations and their gradients to their
neighbours by a permutation each. A stage keeps the inputs of its microbatches, and evaluates its blocks again for the
backward pass, so that what it keeps does not grow with their number.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.emulated import after
from jaxdist.core.types import Batch, Params, Parts
from jaxdist.parallel.schedules import Schedule

AXIS = 'stage'
BLOCKS = 'blocks'
"""The entry of the parameters that is sharded over the stages."""


class Carry(NamedTuple):
    """What one tick hands to the next on a stage.

    Attributes:
        x: the input of the next forward slot.
        dy: the gradient of the loss by the output of the next backward slot.
        inputs: the inputs that are kept, [held, ...].
        grads: the gradients so far.
        terms: the sums and the count so far.
    """

    x: Any
    dy: Any
    inputs: Any
    grads: Any
    terms: Any


def pipeline_gradient(parts: Parts, schedule: Schedule, params: Params, batch: Batch, like: Params) -> tuple[Any, Any]:
    """The sums and the count of a batch, and the gradient of `sums['loss']`: of this stage's blocks, and of the edge.

    Only for use where the axis `stage` is manual. The sums are those of all stages; the gradient of the edge is this
    stage's term.

    Args:
        parts: the model.
        schedule: the schedule.
        params: the edge, and this stage's blocks [L / S, ...], in chunks [V, L / (V S), ...].
        batch: arrays [B, ...]; each stage gets the whole batch, and only its ends look at it.
        like: the parameters whose dtypes the gradients have.

    >>> from jax.sharding import PartitionSpec as P
    >>> parts = Parts(
    ...     first=lambda edge, batch: batch['x'],
    ...     block=lambda w, x: w * x,
    ...     last=lambda edge, x, batch: ({'loss': jnp.sum(x)}, x.size),
    ... )
    >>> params, specs = {'edge': (), 'blocks': jnp.array([2.0, 3.0])}, {'edge': (), 'blocks': P('stage')}
    >>> code = lambda params: pipeline_gradient(parts, Schedule(2, 2), params, {'x': jnp.arange(4.0)}, params)
    >>> mesh = jax.make_mesh((2,), ('stage',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> (sums, count), grads = jax.shard_map(code, mesh=mesh, in_specs=(specs,), out_specs=(P(), specs))(params)
    >>> float(sums['loss']), float(count), grads['blocks'].tolist()
    (36.0, 4.0, [18.0, 12.0])
    """
    m = schedule.microbatches
    micro = jax.tree.map(lambda x: x.reshape(m, x.shape[0] // m, *x.shape[1:]), batch)
    in_chunks = lambda x: x if schedule.chunks > 1 else x[None]  # noqa: E731
    params = {**params, BLOCKS: jax.tree.map(in_chunks, params[BLOCKS])}
    # Before the scan: the gradient of what is typed as the same on all stages is added up over them at every tick.
    params, micro = collectives.pvary((params, micro), AXIS)
    stage = _Stage(parts, schedule, params, micro)
    zero = jnp.int32(0)
    shapes = jax.eval_shape(lambda: stage.run(*stage.of_chunk(zero), stage.start(zero), zero, zero))
    zero_x, zero_terms = collectives.pvary(collectives.zeros(shapes), AXIS)
    wanted = {**like, BLOCKS: jax.tree.map(in_chunks, like[BLOCKS])}
    grads = jax.tree.map(lambda p, q: jnp.zeros_like(p, q.dtype), params, wanted)
    inputs = jax.tree.map(lambda x: jnp.broadcast_to(x, (schedule.held, *x.shape)), zero_x)
    carry = Carry(zero_x, zero_x, inputs, grads, zero_terms)
    carry = collectives.fixed_point(lambda carry: stage.tick(carry, zero, True, True), carry)
    for first, last, forward, backward in _phases(schedule):
        step = lambda carry, t, slots=(forward, backward): (stage.tick(carry, t, *slots), None)  # noqa: E731
        carry = lax.scan(step, carry, jnp.arange(first, last))[0]
    blocks = jax.tree.map(lambda x: x if schedule.chunks > 1 else x[0], carry.grads[BLOCKS])
    return lax.psum(carry.terms, AXIS), {**carry.grads, BLOCKS: blocks}


def _phases(schedule: Schedule) -> list[tuple[int, int, bool, bool]]:
    """Ticks from, to, and which slots they have; ticks without a slot do not compute it."""
    fill, passes, ticks = schedule.fill, schedule.passes, schedule.ticks
    phases = [(0, min(fill, passes), True, False), (fill, passes, True, True), (max(fill, passes), ticks, False, True)]
    return [phase for phase in phases if phase[0] < phase[1]]


class _Stage(NamedTuple):
    """The code of this stage."""

    parts: Parts
    schedule: Schedule
    params: Params
    micro: Batch

    def batch(self, k: jax.Array) -> Batch:
        """The k-th microbatch."""
        return jax.tree.map(lambda x: x[k], self.micro)

    def start(self, k: jax.Array) -> Any:
        """The output of the first part."""
        return self.parts.first(self.params['edge'], self.batch(k))

    def of_chunk(self, chunk: jax.Array) -> tuple[Any, Any]:
        """The edge, and the blocks of a chunk."""
        return self.params['edge'], jax.tree.map(lambda x: x[chunk], self.params[BLOCKS])

    def run(self, edge: Any, blocks: Any, x: Any, k: jax.Array, chunk: jax.Array) -> tuple[Any, Any]:
        """From the input of a microbatch to the output, and its sums and count, which are 0 but on the last stage."""
        batch, me, schedule = self.batch(k), lax.axis_index(AXIS), self.schedule
        begins, ends = (me == 0) & (chunk == 0), (me == schedule.stages - 1) & (chunk == schedule.chunks - 1)
        x = lax.cond(begins, lambda edge, x: self.parts.first(edge, batch), lambda edge, x: x, edge, x)
        y = self.blocks(blocks, x, chunk)

        def last(edge: Any, y: Any) -> Any:
            sums, count = self.parts.last(edge, y, batch)
            return collectives.pvary((sums, jnp.asarray(count, float)), AXIS)

        def none(edge: Any, y: Any) -> Any:
            return collectives.zeros(jax.eval_shape(last, edge, y))

        terms = lax.cond(ends, last, none, edge, y)
        return after(y, terms), terms

    def blocks(self, blocks: Any, x: Any, chunk: jax.Array) -> Any:
        """From the input of the first of some blocks to the output of the last one; spare blocks are left out."""
        if not self.parts.spare:
            return lax.scan(lambda x, row: (self.parts.block(row, x), None), x, blocks)[0]
        rows = len(jax.tree.leaves(blocks)[0])
        place = (chunk * self.schedule.stages + lax.axis_index(AXIS)) * rows + jnp.arange(rows)
        used = place < self.schedule.chunks * self.schedule.stages * rows - self.parts.spare

        def step(x: Any, of: Any) -> Any:
            row, used = of
            return lax.cond(used, lambda row, x: self.parts.block(row, x), lambda row, x: x, row, x), None

        return lax.scan(step, x, (blocks, used))[0]

    def tick(self, carry: Carry, t: jax.Array, forward: bool, backward: bool) -> Carry:
        """One tick."""
        schedule, me = self.schedule, lax.axis_index(AXIS)
        work, held = schedule.work, schedule.held
        if forward:
            n = schedule.forward(me, t)
            ok, n = (n >= 0) & (n < work), jnp.clip(n, 0, work - 1)
            inputs = jax.tree.map(
                lambda all, x: all.at[n % held].set(jnp.where(ok, x, all[n % held])), carry.inputs, carry.x
            )
            k, chunk = schedule.place(n)
            y, terms = self.run(*self.of_chunk(chunk), carry.x, k, chunk)
            added = jax.tree.map(lambda a, b: a + jnp.where(ok, b, 0), carry.terms, terms)
            carry = carry._replace(x=_passed(y, 1), inputs=inputs, terms=added)
            carry = carry._replace(dy=after(carry.dy, carry.x), inputs=after(inputs, carry.x))
        if backward:
            n = schedule.backward(me, t)
            ok, n = (n >= 0) & (n < work), jnp.clip(n, 0, work - 1)
            k, chunk = schedule.place(n)
            chunk = schedule.chunks - 1 - chunk
            kept = schedule.pass_of(k, chunk) % held
            x = jax.tree.map(lambda all: all[kept], carry.inputs)
            code = lambda edge, blocks, x: self.run(edge, blocks, x, k, chunk)  # noqa: E731
            (y, terms), pull = jax.vjp(code, *self.of_chunk(chunk), x)
            sums, count = jax.tree.map(jnp.zeros_like, terms)
            cotangents = {**sums, 'loss': jnp.ones_like(sums['loss'])}, count
            edge, blocks, dx = pull((jax.tree.map(collectives.as_varying, carry.dy, y), cotangents))
            # The first stage hands zeros to the last one, whose output has no other use than the last part.
            dx = after(dx, edge)
            kept_if = lambda d, g: jnp.where(ok, d, 0).astype(g.dtype)  # noqa: E731
            grads = {
                'edge': jax.tree.map(lambda g, d: g + kept_if(d, g), carry.grads['edge'], edge),
                BLOCKS: jax.tree.map(lambda g, d: g.at[chunk].add(kept_if(d, g)), carry.grads[BLOCKS], blocks),
            }
            carry = carry._replace(dy=_passed(dx, -1), grads=grads)
        return carry


def _passed(x: Any, by: int) -> Any:
    """What the neighbour `by` stages before has; the first and the last are neighbours, and do not look at it."""
    stages = lax.axis_size(AXIS)
    return lax.ppermute(x, AXIS, [(stage, (stage + by) % stages) for stage in range(stages)])
