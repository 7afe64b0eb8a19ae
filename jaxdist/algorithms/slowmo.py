"""SlowMo: a slow momentum over the meetings of workers that train alone (Wang et al. 2020, arXiv 1910.00643)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import collectives
from jaxdist.codecs._compressed_mean import Channel, Feedback, Memory, average, bytes_sent, remember
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.core.registry import algorithm


class SlowmoState(NamedTuple):
    """When the workers last met, and where.

    Attributes:
        clock: steps taken, and those since the last meeting.
        anchor: the parameters of the last meeting, which all share.
        momentum: the slow momentum u, which all share.
        memory: what the codec remembers.
    """

    clock: periodic.Clock
    anchor: optax.Params
    momentum: optax.Updates
    memory: Memory

    @property
    def works_locally(self) -> bool:
        """Workers differ on purpose between meetings."""
        return True


@algorithm(
    paper='Wang et al. 2020, SlowMo, arXiv 1910.00643',
    examples={
        'slowmo(every=4)': (laws.meets(4), laws.one_when_alike(), laws.sends(bytes_sent(), every=4)),
        'slowmo(every=3, beta=0.0)': (laws.equals('average(every=3)'), laws.conserves_mean()),
        'slowmo(every=3, alpha=0.8, beta=0.6, learning_rate=0.1)': (
            laws.equals('diloco(every=3, outer=sgd(0.8, momentum=0.6))'),
        ),
    },
    meets='parameters',
)
def slowmo(
    every: periodic.Every,
    alpha: float = 1.0,
    beta: float = 0.7,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Leaves each worker its own updates; every `every` steps all move from where they last met by a slow momentum.

    With gamma the fast learning rate, u <- beta u + (anchor - mean of the workers) / gamma, and all go on from anchor -
    alpha gamma u. The base optimiser's buffers, before this link, stay as they are (the paper's 'maintain'). A worker
    that the step's guard has made `idle` does not move by itself, and meets the others where it stands.

    On another number of workers a run goes on from the anchor and the slow momentum as they are, with all workers at
    the mean of where they were.

    Args:
        every: steps from one meeting to the next (the paper's tau), or a schedule of them.
        alpha: the slow learning rate.
        beta: the slow momentum's decay; 0, with `alpha` 1, is local SGD.
        learning_rate: gamma, that of the optimiser before this link. Only its changes count: a schedule belongs here
            too.
        codec: how the ways that workers came are sent, or None for float32 as they are.
        feedback: whether, or what part of, what a message leaves out is added to the next one.
        exchange: how messages travel: `two_phases`, `gather`, or None for the one that sends least.
        seed: of the codec's random rounding.
        axis: the worker axis.

    Raises:
        ValueError: `every` below 1, a decay that is not in [0, 1), feedback or an exchange without a codec, or no
            parameters given to `update`.

    >>> update = optax.chain(optax.sgd(1.0), slowmo(every=1, alpha=0.5))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-1.5, -1.5, -1.5], dtype=float32)
    """
    periodic.check_every('slowmo', every)
    if not 0 <= beta < 1:
        raise ValueError(f'slowmo: beta={beta} must be 0 or more, and less than 1')
    channel = Channel(axis, codec, feedback, exchange, seed)

    def init(params: optax.Params) -> SlowmoState:
        return SlowmoState(periodic.start(), params, jax.tree.map(jnp.zeros_like, params), remember(params, channel))

    def update(
        updates: optax.Updates, state: SlowmoState, params: Any = None, *, idle: Any = False, **_: Any
    ) -> tuple[optax.Updates, SlowmoState]:
        periodic.check_given('slowmo', params)
        updates = periodic.still(updates, idle)
        gamma = learning_rate(state.clock.step) if callable(learning_rate) else learning_rate

        def meet() -> tuple[Any, ...]:
            back = periodic.way(state.anchor, optax.apply_updates(params, updates), axis)
            mean, memory = average(back, state.memory, channel)
            momentum = jax.tree.map(lambda u, d: (beta * u + d / gamma).astype(u.dtype), state.momentum, mean)
            step = jax.tree.map(lambda u: -alpha * gamma * u, momentum)
            anchor = optax.apply_updates(state.anchor, step)
            return periodic.way(anchor, params, axis), anchor, momentum, memory

        def stay() -> tuple[Any, ...]:
            return collectives.per_worker(updates, axis), state.anchor, state.momentum, state.memory

        due, clock = periodic.tick(state.clock, every)
        updates, *after = lax.cond(due, meet, stay)
        return updates, SlowmoState(clock, *after)

    return optax.GradientTransformationExtraArgs(init, update)
