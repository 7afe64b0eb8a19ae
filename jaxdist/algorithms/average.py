"""Local SGD: workers train alone and average their parameters now and then (Stich 2019, arXiv 1805.09767)."""

from typing import Any, NamedTuple

import optax
from jax import lax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import collectives
from jaxdist.codecs._compressed_mean import Channel, Feedback, Memory, bytes_sent, meeting_place, remember
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.int8 import int8
from jaxdist.core.registry import algorithm


class AverageState(NamedTuple):
    """When the workers last met, and where.

    Attributes:
        clock: steps taken, and those since the last meeting.
        anchor: with a codec, the parameters of the last meeting, which all share; else ().
        memory: what the codec remembers.
    """

    clock: periodic.Clock
    anchor: optax.Params
    memory: Memory

    @property
    def works_locally(self) -> bool:
        """Workers differ on purpose between meetings."""
        return True


@algorithm(
    paper='Stich 2019, Local SGD, arXiv 1805.09767',
    examples={
        'average(every=4)': (
            laws.meets(4),
            laws.one_when_alike(),
            laws.conserves_mean(),
            laws.sends(bytes_sent(), every=4),
        ),
        'average(every=1)': (laws.meets(1), laws.equals('mean()'), laws.sends(bytes_sent())),
        'average(every=piecewise_constant_schedule(1, {4: 3}))': (laws.meets_at((1, 2, 3, 4, 7, 10)),),
        'average(every=2, codec=int8(), feedback=True)': (
            laws.meets(2),
            laws.near_meeting(2, 1.2 / 127),
            laws.conserves_mean(lambda state: state.memory.residual),
            laws.sends(bytes_sent(int8()), every=2),
        ),
    },
    meets='parameters',
)
def average(
    every: periodic.Every,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Leaves each worker its own updates, and every `every` steps moves all to the mean of their parameters.

    It belongs after the optimiser. Between two meetings nothing crosses the worker axis. With a codec, what is sent
    is how far each worker has come since the last meeting, not the parameters themselves, so that the error of the
    codec shrinks with the steps. The optimiser's own state stays each worker's. Workers count equally. A worker that
    the step's guard has made `idle` does not move by itself, and meets the others where it stands.

    On another number of workers a run goes on with all workers at the mean of where they were; the anchor stays.

    Args:
        every: steps from one meeting to the next (H), or a schedule of them. Post-local SGD (Lin et al. 2020,
            arXiv 1808.07217), which trains alone from step 1000 on, has `piecewise_constant_schedule(1, {1000: 16})`.
        codec: how the distance is sent, or None for exact parameters.
        feedback: whether, or what part of, what a message leaves out is added to the next one.
        exchange: how messages travel: `two_phases`, `gather`, or None for the one that sends least.
        seed: of the codec's random rounding.
        axis: the worker axis.

    Raises:
        ValueError: `every` below 1, feedback or an exchange without a codec, or no parameters given to `update`.

    >>> import jax, jax.numpy as jnp
    >>> update = optax.chain(optax.sgd(1.0), average(every=1))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-3., -3., -3.], dtype=float32)
    """
    periodic.check_every('average', every)
    channel = Channel(axis, codec, feedback, exchange, seed)

    def init(params: optax.Params) -> AverageState:
        anchor = params if codec is not None else ()
        return AverageState(periodic.start(), anchor, remember(params, channel))

    def update(
        updates: optax.Updates,
        state: AverageState,
        params: Any = None,
        *,
        idle: Any = False,
        **_: Any,
    ) -> tuple[optax.Updates, AverageState]:
        periodic.check_given('average', params)
        updates = periodic.still(updates, idle)
        local = collectives.per_worker(optax.apply_updates(params, updates), axis)

        def meet() -> tuple[Any, ...]:
            there, *after = meeting_place(local, state.anchor, state.memory, channel)
            return periodic.way(there, params, axis), *after

        def stay() -> tuple[Any, ...]:
            return collectives.per_worker(updates, axis), state.anchor, state.memory

        due, clock = periodic.tick(state.clock, every)
        updates, anchor, memory = lax.cond(due, meet, stay)
        return updates, AverageState(clock, anchor, memory)

    return optax.GradientTransformationExtraArgs(init, update)
