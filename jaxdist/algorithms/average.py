"""Local SGD: workers train alone and average their parameters now and then (Stich 2019, arXiv 1805.09767)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import laws, wire
from jaxdist.codecs.average import Channel, Feedback, Memory, bytes_sent, remember
from jaxdist.codecs.average import average as mean_over_workers
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.exchange import ExchangeName
from jaxdist.codecs.int8 import int8
from jaxdist.registry import algorithm


class AverageState(NamedTuple):
    """When the workers last met, and where.

    Attributes:
        since: steps since the last meeting, an int32 scalar.
        anchor: with a codec, the parameters of the last meeting, which all share; else ().
        memory: what the codec remembers.
    """

    since: jax.Array
    anchor: optax.Params
    memory: Memory

    @property
    def works_locally(self) -> bool:
        """Workers differ on purpose between meetings."""
        return True


@algorithm(
    paper='Stich 2019, Local SGD, arXiv 1805.09767',
    examples={
        'average(every=4)': (laws.meets(4), laws.conserves_mean(), laws.sends(bytes_sent(), every=4)),
        'average(every=1)': (laws.meets(1), laws.equals('mean()'), laws.sends(bytes_sent())),
        'average(every=2, codec=int8(), feedback=True)': (
            laws.meets(2),
            laws.near_meeting(2, 1.2 / 127),
            laws.conserves_mean(lambda state: state.memory.residual),
            laws.sends(bytes_sent(int8()), every=2),
        ),
    },
)
def average(
    every: int,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = wire.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Leaves each worker its own updates, and every `every` steps moves all to the mean of their parameters.

    It belongs after the optimiser. Between two meetings nothing crosses the worker axis. With a codec, what is sent
    is how far each worker has come since the last meeting, not the parameters themselves, so that the error of the
    codec shrinks with the steps. The optimiser's own state stays each worker's. Workers count equally. A worker that
    the step's guard has made `idle` does not move by itself, and meets the others where it stands.

    Args:
        every: steps from one meeting to the next (the paper's H).
        codec: how the distance is sent, or None for exact parameters.
        feedback: whether what a message leaves out is added to the next one.
        exchange: how messages travel: `two_phases`, `gather`, or None for the one that sends least.
        seed: of the codec's random rounding.
        axis: the worker axis.

    Raises:
        ValueError: `every` below 1, feedback or an exchange without a codec, or no parameters given to `update`.

    >>> update = optax.chain(optax.sgd(1.0), average(every=1))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-3., -3., -3.], dtype=float32)
    """
    if every < 1:
        raise ValueError(f'average: every={every} must be 1 or more')

    channel = Channel(axis, codec, feedback, exchange, seed)

    def init(params: optax.Params) -> AverageState:
        anchor = params if codec is not None else ()
        return AverageState(jnp.zeros((), jnp.int32), anchor, remember(params, channel))

    def update(
        updates: optax.Updates,
        state: AverageState,
        params: Any = None,
        *,
        idle: Any = False,
        **_: Any,
    ) -> tuple[optax.Updates, AverageState]:
        if params is None:
            raise ValueError('average moves parameters, so update() needs them: update(updates, state, params)')
        updates = jax.tree.map(lambda u: jnp.where(idle, -0.0, u).astype(u.dtype), updates)  # p + -0.0 is p, for any p
        local = wire.per_worker(optax.apply_updates(params, updates), axis)

        def meet() -> tuple[Any, ...]:
            if codec is None:
                there, memory = mean_over_workers(local, state.memory, channel)
                return wire.per_worker(jax.tree.map(jnp.subtract, there, params), axis), (), memory
            way = jax.tree.map(jnp.subtract, local, state.anchor)
            step, memory = mean_over_workers(way, state.memory, channel)
            there = optax.apply_updates(state.anchor, step)
            return wire.per_worker(jax.tree.map(jnp.subtract, there, params), axis), there, memory

        def stay() -> tuple[Any, ...]:
            return wire.per_worker(updates, axis), state.anchor, state.memory

        since = state.since + 1
        updates, anchor, memory = lax.cond(since == every, meet, stay)
        return updates, AverageState(since % every, anchor, memory)

    return optax.GradientTransformationExtraArgs(init, update)
