"""A queue that returns values after a delay, which may differ per worker."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.errors import InputError

Delays = int | Sequence[int] | Callable[[jax.Array], Any]
"""The delay in steps: a number; one for each worker; or an optax schedule of the steps taken so far."""


class Queue(NamedTuple):
    """The values in flight: a ring buffer.

    Attributes:
        slots: for each leaf [longest delay, ...], the sums of the values that are due at each of the next steps.
        step: steps taken, an int32 scalar; the value due now is in slot `step` modulo the number of slots.
    """

    slots: Any
    step: jax.Array


def check_delays(name: str, delays: Delays, longest: int | None) -> None:
    """Checks the delays, and the longest delay of a schedule.

    Raises:
        InputError: a delay is below 0 or not a whole number, a schedule has no `longest`, or anything else has one.

    >>> check_delays('delay', (0, -1), None)
    Traceback (most recent call last):
    jaxdist.InputError: delay: steps=-1 must be a whole number, 0 or more
    """
    if callable(delays):
        if longest is None or longest < 1:
            raise InputError(f'{name}: with a schedule of steps, longest=... must say how long the longest delay is')
        return
    if longest is not None:
        raise InputError(f'{name}: longest={longest} is for a schedule of steps, and steps={delays} is none')
    for steps in delays if isinstance(delays, Sequence) else [delays]:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise InputError(f'{name}: steps={steps!r} must be a whole number, 0 or more')
    if isinstance(delays, Sequence) and not delays:
        raise InputError(f'{name}: steps={delays!r} must have a delay for each worker')


def slots(delays: Delays, longest: int | None) -> int:
    """The number of slots that a queue needs, which is the longest delay.

    >>> slots((0, 3, 1), None)
    3
    """
    if callable(delays):
        return longest or 0
    return delays if isinstance(delays, int) else max(delays)


def init(tree: Any, count: int) -> Queue:
    """An empty queue of `count` slots for values like `tree`; all slots are zeros.

    >>> init(jnp.ones(2), 1)
    Queue(slots=Array([[0., 0.]], dtype=float32), step=Array(0, dtype=int32))
    """
    return Queue(jax.tree.map(lambda p: jnp.zeros((count, *p.shape), p.dtype), tree), jnp.zeros((), jnp.int32))


def current_delay(name: str, delays: Delays, longest: int | None, step: jax.Array, axis: str) -> Any:
    """This worker's delay at this step; the value of a schedule is rounded, and clipped to [0, `longest`].

    Raises:
        InputError: the delays are for another number of workers.

    >>> run = jax.vmap(lambda step: current_delay('delay', (0, 3), None, step, 'w'), axis_name='w')
    >>> jax.jit(run)(jnp.zeros(2))
    Array([0, 3], dtype=int32)
    """
    if callable(delays):
        return jnp.clip(jnp.rint(jnp.asarray(delays(step))), 0, longest).astype(jnp.int32)
    if isinstance(delays, int):
        return delays
    if len(delays) != collectives.axis_size(axis):
        raise InputError(
            f'{name}: steps={tuple(delays)} is for {len(delays)} workers, and there are {collectives.axis_size(axis)}'
        )
    return jnp.asarray(delays, jnp.int32)[collectives.axis_index(axis)]


def push_pop(tree: Any, queue: Queue, delay: Any) -> tuple[Any, Queue]:
    """Pushes `tree` and pops the value that is due at this step; values that are due together are summed.

    Args:
        tree: the value of this step.
        queue: the values in flight.
        delay: the steps after which `tree` is due, at most the number of slots.

    Returns:
        The value that is due, zeros if there is none, and the queue after this step.

    >>> push_pop(jnp.array(5.0), Queue(jnp.array([1.0, 2.0]), jnp.int32(0)), 2)
    (Array(1., dtype=float32), Queue(slots=Array([5., 2.], dtype=float32), step=Array(1, dtype=int32)))
    """
    count = jax.tree.leaves(queue.slots)[0].shape[0] if jax.tree.leaves(queue.slots) else 0
    if not count:
        return tree, queue
    pop_slot, push_slot = queue.step % count, (queue.step + delay) % count
    if isinstance(delay, int) and delay == count:  # a constant delay: the value due now frees the slot of the new one
        # q[pop_slot] would check bounds, and on a TPU a mean of `due` could then not overlap with computation.
        due = jax.tree.map(lambda q: lax.dynamic_index_in_dim(q, pop_slot, keepdims=False), queue.slots)
        put = lambda q, x: lax.dynamic_update_index_in_dim(q, x.astype(q.dtype), pop_slot, 0)  # noqa: E731
        return due, Queue(jax.tree.map(put, queue.slots, tree), queue.step + 1)
    # A value without delay never enters the ring: its slot is the one that is emptied in this step.
    at_once = jnp.asarray(delay) == 0
    due = jax.tree.map(lambda q, x: q[pop_slot] + jnp.where(at_once, x, 0).astype(q.dtype), queue.slots, tree)
    delayed = jax.tree.map(lambda q, x: jnp.where(at_once, 0, x).astype(q.dtype), queue.slots, tree)
    slots = jax.tree.map(lambda q, x: q.at[pop_slot].set(0).at[push_slot].add(x), queue.slots, delayed)
    return due, Queue(slots, queue.step + 1)
