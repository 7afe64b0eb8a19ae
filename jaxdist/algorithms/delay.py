"""Delayed updates: what goes in comes out a fixed number of steps later (Zinkevich et al. 2009, Slow Learners are
Fast).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.registry import algorithm


class DelayState(NamedTuple):
    """The updates on their way.

    Attributes:
        queue: for each leaf, [steps, ...], the oldest at `oldest`.
        oldest: its position, an int32 scalar.
    """

    queue: optax.Updates
    oldest: jax.Array


@algorithm(
    paper='Zinkevich et al. 2009, Slow Learners are Fast',
    examples={
        'delay(steps=3)': (laws.delays(3), laws.sends_nothing()),
        'delay(steps=0)': (laws.delays(0), laws.equals('identity()'), laws.sends_nothing()),
    },
)
def delay(steps: int = 1) -> optax.GradientTransformationExtraArgs:
    """Passes updates on `steps` steps after they came; for the first `steps` steps, zeros.

    After `mean` the queue is the same on every worker and stored once; before it, each worker has its own. An optimiser
    behind it sees the zeros: put `adamw` before `delay` where its moments shall not count them.

    Args:
        steps: the delay; 0 passes updates on at once.

    Raises:
        ValueError: a negative delay.

    >>> update = delay(steps=1)
    >>> state = update.init(jnp.array(0.0))
    >>> first, state = update.update(jnp.array(5.0), state)
    >>> second, state = update.update(jnp.array(6.0), state)
    >>> float(first), float(second)
    (0.0, 5.0)
    """
    if steps < 0:
        raise ValueError(f'delay: steps={steps} must be 0 or more')

    def init(params: optax.Params) -> DelayState:
        return DelayState(
            jax.tree.map(lambda p: jnp.zeros((steps, *p.shape), p.dtype), params), jnp.zeros((), jnp.int32)
        )

    def update(
        updates: optax.Updates, state: DelayState, params: Any = None, **_: Any
    ) -> tuple[optax.Updates, DelayState]:
        del params
        if steps == 0:
            return updates, state
        due = jax.tree.map(lambda q: q[state.oldest], state.queue)
        queue = jax.tree.map(lambda q, u: q.at[state.oldest].set(u.astype(q.dtype)), state.queue, updates)
        return due, DelayState(queue, (state.oldest + 1) % steps)

    return optax.GradientTransformationExtraArgs(init, update)
