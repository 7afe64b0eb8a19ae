"""DC-ASGD: delayed gradients with delay compensation (Zheng et al. 2017, arXiv 1609.08326)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _delay_queue as delay_queue
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.parameters import check_real
from jaxdist.core.registry import algorithm


class DcAsgdState(NamedTuple):
    """Gradients in flight, and the parameters at which they were computed.

    Attributes:
        gradients: the queue of gradients.
        params: the queue of the parameters at which each gradient was computed.
        square: with `adaptive`, the running mean of squared delayed gradients; else ().
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
    """Delays gradients and compensates for the delay: returns g + lambda g * g * (x - x_old), entry by entry.

    Here x are the present parameters and x_old those at which g was computed: the first-order Taylor term of the
    gradient's change, with the squared gradient for the diagonal of the Hessian. It stands before the optimiser, and
    before `mean` where delays differ between workers; it sends nothing itself. A worker's output is zeros until its
    first gradient is due. A rejected step leaves the queued values as they were. On another number of workers each
    queue becomes the mean of the workers' queues.

    Args:
        steps: the delay, or a delay for each worker.
        strength: lambda (0.04 in the paper for CIFAR-10); with `adaptive`, lambda_0 (2 there).
        adaptive: whether lambda is lambda_0 / sqrt(m + eps), entry by entry, with m the running mean of squared
            gradients, one per worker before `mean` (DC-ASGD-a).
        decay: the decay of that running mean.
        eps: the constant under that square root.
        axis: the worker axis.

    Raises:
        InputError: a delay or `strength` is negative, `steps` is a schedule (two gradients could be due at once), or
            `decay` is not in [0, 1); in `init`, a parameter is complex; in `update`, no parameters are given, or the
            delays are for another number of workers.

    >>> update = dc_asgd(steps=1, strength=1.0)
    >>> state = update.init(jnp.array(0.0))
    >>> _, state = update.update(jnp.array(2.0), state, jnp.array(0.0))
    >>> float(update.update(jnp.array(7.0), state, jnp.array(0.5))[0])  # 2 + 2 * 2 * 0.5
    4.0
    """
    if callable(steps):
        raise InputError(
            'dc_asgd: steps is a schedule, so two gradients could be due at once; give a delay for each worker'
        )
    delay_queue.check_delays('dc_asgd', steps, None)
    if strength < 0 or not 0 <= decay < 1:
        raise InputError(f'dc_asgd: strength={strength} must be 0 or more, and decay={decay} in [0, 1)')
    count = delay_queue.slots(steps, None)

    def init(params: optax.Params) -> DcAsgdState:
        cure = 'contrib.split_real_and_imaginary(dc_asgd(...)) compensates their real and imaginary parts'
        check_real('dc_asgd: the squared gradient stands for a diagonal of real numbers', params, cure)
        square = jax.tree.map(jnp.zeros_like, params) if adaptive else ()
        return DcAsgdState(delay_queue.init(params, count), delay_queue.init(params, count), square)

    def update(
        updates: optax.Updates, state: DcAsgdState, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, DcAsgdState]:
        if params is None:
            raise InputError('dc_asgd compares parameters, so update() needs them: update(updates, state, params)')
        now = delay_queue.current_delay('dc_asgd', steps, None, state.gradients.step, axis)
        due, gradients = delay_queue.push_pop(updates, state.gradients, now)
        old, old_params = delay_queue.push_pop(params, state.params, now)
        square, strengths = state.square, jax.tree.map(lambda g: jnp.asarray(strength, g.dtype), due)
        if adaptive:
            square = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g * g, square, due)
            strengths = jax.tree.map(lambda m: strength / jnp.sqrt(m + eps), square)
        # Until the first gradient is due both queues return zeros: x_old is then wrong, but g = 0 cancels the term.
        compensated = lambda g, s, x, x_old: (g + s * g * g * (x - x_old)).astype(g.dtype)  # noqa: E731
        out = jax.tree.map(compensated, due, strengths, params, old)
        return out, DcAsgdState(gradients, old_params, square)

    return optax.GradientTransformationExtraArgs(init, update)
