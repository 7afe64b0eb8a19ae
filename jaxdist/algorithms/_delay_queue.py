"""What is under way: values that come some steps after they were made, each worker's with a delay of its own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.errors import InputError

Delays = int | Sequence[int] | Callable[[jax.Array], Any]
"""Steps that a value takes: a number; one for each worker; or an optax schedule of the steps taken so far."""


class Queue(NamedTuple):
    """The values on their way.

    Attributes:
        slots: for each leaf, [longest delay, ...]: what comes at the steps ahead, in turn.
        step: steps taken, an int32 scalar: what comes now lies in the slot `step` modulo their number.
    """

    slots: Any
    step: jax.Array


def check_delays(name: str, delays: Delays, longest: int | None) -> None:
    """Says what is wrong with delays, and with the longest that a schedule may ask for.

    Raises:
        InputError: a number that is not whole or below 0, or a schedule without `longest`.

    >>> check_delays('delay', (0, -1), None)
    Traceback (most recent call last):
    jaxdist.InputError: delay: steps=-1 must be a whole number, 0 or more
    """
    if callable(delays):
        if longest is None or longest < 1:
            raise InputError(f'{name}: with a schedule of steps, longest=... must say how long the longest delay is')
        return
    if longest is not None:
        raise InputError(f'{name}: longest={longest} is for a schedule; steps={delays} says how long it takes')
    for steps in delays if isinstance(delays, Sequence) else [delays]:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise InputError(f'{name}: steps={steps!r} must be a whole number, 0 or more')
    if isinstance(delays, Sequence) and not delays:
        raise InputError(f'{name}: steps={delays!r} must have a delay for each worker')


def slots(delays: Delays, longest: int | None) -> int:
    """How many slots a queue needs.

    >>> slots((0, 3, 1), None)
    3
    """
    if callable(delays):
        return longest or 0
    return delays if isinstance(delays, int) else max(delays)


def init(tree: Any, count: int) -> Queue:
    """A queue with so many slots, and nothing in them.

    >>> init(jnp.ones(2), 1)
    Queue(slots=Array([[0., 0.]], dtype=float32), step=Array(0, dtype=int32))
    """
    return Queue(jax.tree.map(lambda p: jnp.zeros((count, *p.shape), p.dtype), tree), jnp.zeros((), jnp.int32))


def current_delay(name: str, delays: Delays, longest: int | None, step: jax.Array, axis: str) -> Any:
    """How long what this worker makes in this step takes; a schedule's value is rounded, and at most `longest`.

    Raises:
        InputError: there are delays for another number of workers.

    >>> run = jax.vmap(lambda step: current_delay('delay', (0, 3), None, step, 'w'), axis_name='w')
    >>> run(jnp.zeros(2))
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
    """What comes at this step, and the queue after it; of what comes together, the sum.

    Args:
        tree: what is made in this step.
        queue: the values on their way.
        delay: how many steps `tree` takes, at most as many as there are slots.

    >>> push_pop(jnp.array(5.0), Queue(jnp.array([1.0, 2.0]), jnp.int32(0)), 2)
    (Array(1., dtype=float32), Queue(slots=Array([5., 2.], dtype=float32), step=Array(1, dtype=int32)))
    """
    count = jax.tree.leaves(queue.slots)[0].shape[0] if jax.tree.leaves(queue.slots) else 0
    if not count:
        return tree, queue
    here, there = queue.step % count, (queue.step + delay) % count
    if isinstance(delay, int) and delay == count:  # everything takes as long: what comes makes room
        # As q[here] it would be checked against bounds; on a TPU a mean of `due` then overlaps with nothing.
        due = jax.tree.map(lambda q: lax.dynamic_index_in_dim(q, here, keepdims=False), queue.slots)
        put = lambda q, x: lax.dynamic_update_index_in_dim(q, x.astype(q.dtype), here, 0)  # noqa: E731
        return due, Queue(jax.tree.map(put, queue.slots, tree), queue.step + 1)
    at_once = jnp.asarray(delay) == 0
    due = jax.tree.map(lambda q, x: q[here] + jnp.where(at_once, x, 0).astype(q.dtype), queue.slots, tree)
    late = jax.tree.map(lambda q, x: jnp.where(at_once, 0, x).astype(q.dtype), queue.slots, tree)
    left = jax.tree.map(lambda q, x: q.at[here].set(0).at[there].add(x), queue.slots, late)
    return due, Queue(left, queue.step + 1)
