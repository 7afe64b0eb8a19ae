"""DC-ASGD: late gradients, corrected for how far the parameters have moved (Zheng et al. 2017, arXiv 1609.08326)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _delay_queue as delay_queue
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.registry import algorithm


class DcAsgdState(NamedTuple):
    """Gradients on their way, and what they were taken of.

    Attributes:
        gradients: on their way.
        params: beside each gradient, the parameters that it was taken at.
        square: with `adaptive`, the running mean of the squares of gradients that came; else ().
    """

    gradients: delay_queue.Queue
    params: delay_queue.Queue
    square: optax.Updates


@algorithm(
    paper='Zheng et al. 2017, DC-ASGD, arXiv 1609.08326',
    examples={
        'dc_asgd(steps=3, strength=0.5)': (laws.compensates(3, 0.5), laws.sends_nothing()),
        'dc_asgd(steps=2, strength=0.5, adaptive=True, decay=0.9)': (laws.compensates(2, 0.5, decay=0.9),),
        'dc_asgd(steps=3, strength=0.0)': (laws.equals('delay(steps=3)'),),
        'dc_asgd(steps=0)': (laws.equals('identity()'),),
        'dc_asgd(steps=(2, 0, 4), strength=0.0)': (laws.arrives(lambda worker, step: (2, 0, 4)[worker], workers=3),),
    },
)
def dc_asgd(
    steps: int | Sequence[int] = 1,
    strength: float = 0.04,
    adaptive: bool = False,
    decay: float = 0.95,
    eps: float = 1e-7,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Delays gradients, and when they come adds lambda g * g * (x - x_old), entry by entry.

    That is the first term of what the gradient has changed by since, with the square of the gradient in the place of
    the Hessian's diagonal: x are the parameters now, x_old those that g was taken at. It belongs before the
    optimiser, and before `mean` where each worker has a delay of its own. In a worker's first steps, until its first
    gradient comes, zeros come out.

    On another number of workers a run goes on with the means of the queues.

    Args:
        steps: the delay, or one for each worker.
        strength: lambda (0.04 in the paper for CIFAR-10); with `adaptive`, lambda_0 (2 there).
        adaptive: whether lambda is lambda_0 / sqrt(m + eps), entry by entry, with m the running mean of squared
            gradients, each worker's own before `mean` (DC-ASGD-a).
        decay: of that mean.
        eps: under the root.
        axis: the worker axis.

    Raises:
        InputError: a delay below 0, a schedule of them (two gradients could come at once), a negative strength, a decay
            that is not in [0, 1); and, in `update`, no parameters, or delays for another number of workers.

    >>> update = dc_asgd(steps=1, strength=1.0)
    >>> state = update.init(jnp.array(0.0))
    >>> _, state = update.update(jnp.array(2.0), state, jnp.array(0.0))
    >>> float(update.update(jnp.array(7.0), state, jnp.array(0.5))[0])  # 2 + 2 * 2 * 0.5
    4.0
    """
    if callable(steps):
        raise InputError('dc_asgd: steps is a schedule, and two gradients could come at once; give each worker a delay')
    delay_queue.check_delays('dc_asgd', steps, None)
    if strength < 0 or not 0 <= decay < 1:
        raise InputError(f'dc_asgd: strength={strength} must be 0 or more, and decay={decay} in [0, 1)')
    count = delay_queue.slots(steps, None)

    def init(params: optax.Params) -> DcAsgdState:
        square = jax.tree.map(jnp.zeros_like, params) if adaptive else ()
        return DcAsgdState(delay_queue.init(params, count), delay_queue.init(params, count), square)

    def update(
        updates: optax.Updates, state: DcAsgdState, params: Any = None, **_: Any
    ) -> tuple[optax.Updates, DcAsgdState]:
        if params is None:
            raise InputError('dc_asgd compares parameters, so update() needs them: update(updates, state, params)')
        now = delay_queue.current_delay('dc_asgd', steps, None, state.gradients.step, axis)
        due, gradients = delay_queue.push_pop(updates, state.gradients, now)
        old, places = delay_queue.push_pop(params, state.params, now)
        square, strengths = state.square, jax.tree.map(lambda g: jnp.asarray(strength, g.dtype), due)
        if adaptive:
            square = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g * g, square, due)
            strengths = jax.tree.map(lambda m: strength / jnp.sqrt(m + eps), square)
        # Before anything has come, g is zero and so is all that follows from it.
        compensated = lambda g, s, x, x_old: (g + s * g * g * (x - x_old)).astype(g.dtype)  # noqa: E731
        out = jax.tree.map(compensated, due, strengths, params, old)
        return out, DcAsgdState(gradients, places, square)

    return optax.GradientTransformationExtraArgs(init, update)
