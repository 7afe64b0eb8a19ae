"""Delayed updates: what goes in comes out some steps later (Zinkevich et al. 2009, Slow Learners are Fast)."""

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
)
def delay(
    steps: delay_queue.Delays = 1, longest: int | None = None, damping: float = 0.0, axis: str = collectives.AXIS
) -> optax.GradientTransformationExtraArgs:
    """Passes each update on some steps after it came; what comes out of a step is the sum of what is due, or zeros.

    Every update comes out once, whatever the delays. After `mean` the queue is the same on every worker and stored
    once; before it, each worker has its own. `delay(steps=1) | mean()` lets the mean run under the next step's
    computation: what it takes the mean of lies ready when the step begins. An optimiser behind this link sees the
    zeros: put `adamw` before it where its moments shall not count them.

    On another number of workers a run goes on with each worker's queue as the mean of those that there were: what was
    on its way still comes.

    Args:
        steps: the delay; or one for each worker; or a schedule, which is asked for the delay of what comes in at each
            step (delays that shrink let several updates come out together). 0 passes updates on at once.
        longest: with a schedule, the longest delay; it asks for no longer one.
        damping: updates are multiplied by max(1, delay) ** -damping; 1 is the staleness-aware step size of Zhang et al.
            2016 (arXiv 1511.05950).
        axis: the worker axis.

    Raises:
        InputError: a delay below 0, a schedule without `longest`, a negative damping; and, in `update`, delays for
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
            weight = jnp.maximum(1.0, now) ** -damping
            updates = jax.tree.map(lambda u: (weight * u).astype(u.dtype), updates)
        return delay_queue.push_pop(updates, state, now)

    return optax.GradientTransformationExtraArgs(init, update)
