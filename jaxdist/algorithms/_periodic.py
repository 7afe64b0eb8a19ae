"""What algorithms have in common that let workers train alone: when these meet, and how each of them moves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.core import collectives

Every = int | Callable[[jax.Array], Any]
"""Steps from one meeting to the next (H): a number, or an optax schedule of the steps taken so far."""


class Clock(NamedTuple):
    """Where a worker is between two meetings; all workers have the same.

    Attributes:
        step: steps taken, an int32 scalar.
        since: those after the last meeting.
    """

    step: jax.Array
    since: jax.Array


def start() -> Clock:
    """The clock before the first step.

    >>> start()
    Clock(step=Array(0, dtype=int32), since=Array(0, dtype=int32))
    """
    return Clock(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def tick(clock: Clock, every: Every) -> tuple[jax.Array, Clock]:
    """Whether workers meet at the end of this step, and the clock after it.

    A schedule is asked for the steps taken before this one; its value is rounded, and 1 at least.

    >>> due, clock = tick(start(), every=2)
    >>> bool(due), bool(tick(clock, every=2)[0])
    (False, True)
    """
    now = jnp.maximum(jnp.rint(jnp.asarray(every(clock.step))), 1) if callable(every) else every
    since = clock.since + 1
    due = since >= now
    return due, Clock(clock.step + 1, jnp.where(due, 0, since))


def check_every(name: str, every: Every, what: str = 'every') -> None:
    """Says what is wrong with a number of steps.

    Args:
        name: the algorithm.
        every: the number, or a schedule.
        what: the argument's name.

    Raises:
        ValueError: it is neither a whole number from 1 nor a schedule.

    >>> check_every('average', 0)
    Traceback (most recent call last):
    ValueError: average: every=0 must be a whole number, 1 or more, or a schedule of them
    """
    whole = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if not whole and not _is_schedule(every):
        raise ValueError(f'{name}: {what}={every!r} must be a whole number, 1 or more, or a schedule of them')


def check_optimizer(name: str, optimizer: Any, what: str = 'outer') -> optax.GradientTransformationExtraArgs:
    """The optimiser, ready for any extra arguments, once it is sure to be one.

    Raises:
        ValueError: it is none.

    >>> check_optimizer('diloco', 0.7)
    Traceback (most recent call last):
    ValueError: diloco: outer is of type float, and must be an optimiser, such as sgd(0.7, momentum=0.9, nesterov=True)
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        kind = 'a schedule' if callable(optimizer) else f'of type {type(optimizer).__name__}'
        right = 'sgd(0.7, momentum=0.9, nesterov=True)'
        raise ValueError(f'{name}: {what} is {kind}, and must be an optimiser, such as {right}')
    return optax.with_extra_args_support(optimizer)


def check_given(name: str, params: Any) -> None:
    """Says that an algorithm that moves parameters must be given them.

    Raises:
        ValueError: they are None.

    >>> check_given('average', {'w': 1.0})
    """
    if params is None:
        raise ValueError(f'{name} moves parameters, so update() needs them: update(updates, state, params)')


def still(updates: Any, idle: Any) -> Any:
    """The updates, or none of a worker that the step's guard has made `idle`.

    >>> still(jnp.ones(2), idle=True)
    Array([-0., -0.], dtype=float32)
    """
    return jax.tree.map(lambda u: jnp.where(idle, -0.0, u).astype(u.dtype), updates)  # p + -0.0 is p, for any p


def way(there: Any, here: Any, axis: str = collectives.AXIS) -> Any:
    """From `here` to `there`, leaf by leaf, as each worker's own.

    >>> jax.vmap(lambda x: way(3.0, x), axis_name='workers')(jnp.array([1.0, 2.0]))
    Array([2., 1.], dtype=float32)
    """
    return collectives.per_worker(jax.tree.map(lambda a, b: jnp.asarray(a - b), there, here), axis)


def _is_schedule(x: Any) -> bool:
    return callable(x) and not isinstance(x, optax.GradientTransformation)
