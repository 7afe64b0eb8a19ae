"""Delayed updates: each is applied some steps after it was computed (Zinkevich et al. 2009, Slow Learners are Fast)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _delay_queue as delay_queue
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.registry import algorithm


@algorithm(
    paper='Zinkevich et al. 2009, Slow Learners are Fast',
    examples={
        'delay(steps=3)': (laws.delays(3), laws.sends_nothing()),
        'delay(steps=0)': (laws.delays(0), laws.equals('identity()'), laws.sends_nothing()),
        'delay(steps=(2, 0, 5))': (laws.arrives(lambda worker, step: (2, 0, 5)[worker], workers=3),),
        'delay(steps=piecewise_constant_schedule(1, {3: 4, 8: 0}), longest=4)': (
            laws.arrives(lambda worker, step: 1 if step < 3 else 4 if step < 8 else 0),
            laws.sends_nothing(),
        ),
        'delay(steps=4, damping=1.0)': (laws.equals('delay(steps=4) | scale(0.25)'),),
    },
    overlap='steps',
)
def delay(
    steps: delay_queue.Delays = 1, longest: int | None = None, damping: float = 0.0, axis: str = collectives.AXIS
) -> optax.GradientTransformationExtraArgs:
    """Returns each update after a delay: the output of a step is the sum of the updates that are due, or zeros.

    Every update comes out exactly once, whatever the delays. It stands before or after `mean`, and sends nothing
    itself: after `mean` the queue is replicated and stored once, before it each worker has its own. In
    `delay(steps=1) | mean()` the mean can overlap with the step's computation, since its input is ready when the step
    begins. A later optimiser sees the zeros; put `adamw` before the delay to keep them out of its moments. A rejected
    step leaves the queued updates as they were. On another number of workers each queue becomes the mean of the
    workers' queues, so that updates in flight still arrive.

    Args:
        steps: the delay; or a delay for each worker; or a schedule, evaluated at each step for the delay of that
            step's update (with shrinking delays, several updates can be due together). 0 returns updates at once.
        longest: the longest delay of a schedule, to which its values are clipped; for a schedule only.
        damping: the exponent of the factor max(1, delay) ** -damping on updates; 1 is the staleness-aware step size of
            Zhang et al. 2016 (arXiv 1511.05950).
        axis: the worker axis.

    Raises:
        InputError: a delay or `damping` is negative, or a schedule has no `longest`; in `update`, the delays are for
            another number of workers.

    >>> update = delay(steps=1)
    >>> state = update.init(jnp.array(0.0))
    >>> first, state = update.update(jnp.array(5.0), state)
    >>> second, state = update.update(jnp.array(6.0), state)
    >>> float(first), float(second)
    (0.0, 5.0)
    """
    delay_queue.check_delays('delay', steps, longest)
    if damping < 0:
        raise InputError(f'delay: damping={damping} must be 0 or more')

    def init(params: optax.Params) -> delay_queue.Queue:
        return delay_queue.init(params, delay_queue.slots(steps, longest))

    def update(
        updates: optax.Updates, state: delay_queue.Queue, params: Any = None, **_: Any
    ) -> tuple[optax.Updates, delay_queue.Queue]:
        del params
        now = delay_queue.current_delay('delay', steps, longest, state.step, axis)
        if damping:
            weight = jnp.maximum(1.0, now) ** -damping  # max: an update without delay keeps its size
            updates = jax.tree.map(lambda u: (weight * u).astype(u.dtype), updates)
        return delay_queue.push_pop(updates, state, now)

    return optax.GradientTransformationExtraArgs(init, update)
