"""Eager DiLoCo: a worker's own way counts at once, others' one meeting late (Kale et al. 2025, arXiv 2502.12996)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import collectives
from jaxdist.codecs._compressed_mean import Channel, Feedback, Memory, average, bytes_sent, remember
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.core.registry import algorithm


class EagerDilocoState(NamedTuple):
    """Each worker's own.

    Attributes:
        clock: steps taken, and those since the last meeting.
        anchor: where this worker stood after its last outer step.
        outer: its outer optimiser's state.
        last: the way back to the anchor before, which is sent at the next meeting.
        memory: what the codec remembers.
    """

    clock: periodic.Clock
    anchor: optax.Params
    outer: optax.OptState
    last: optax.Updates
    memory: Memory

    @property
    def works_locally(self) -> bool:
        """Workers differ on purpose, always."""
        return True


def _eagerly(puts: np.ndarray, start: np.ndarray, every: int) -> np.ndarray:
    """The same in a plain loop with an outer rate of 1, for a law: from [T, W, ...], what each worker moves by."""
    x = anchor = np.repeat(start[None], puts.shape[1], 0)
    last, moves = np.zeros_like(x), []
    for t, put in enumerate(puts, 1):
        there = x + put
        if t % every == 0:
            back = anchor - there
            there = anchor = anchor - last.mean(0) - (back - last) / len(x)
            last = back
        moves.append(there - x)
        x = there
    return np.stack(moves)


@algorithm(
    paper='Kale et al. 2025, Eager Updates, arXiv 2502.12996',
    examples={
        'eager_diloco(every=3, outer=sgd(1.0))': (
            laws.walks(lambda puts, start: _eagerly(puts, start, every=3)),
            laws.sends(bytes_sent(), every=3),
        ),
    },
    meets='parameters',
)
def eager_diloco(
    every: periodic.Every,
    outer: optax.GradientTransformation,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Leaves each worker its own updates; every `every` steps it steps along its own way and the others' last ones.

    With D_i the way of worker i back to its anchor, the outer gradient is mean_j(last D_j) + (D_i - last D_i) / W:
    the others' part has had a whole round to travel. Each worker has an anchor and an outer optimiser of its own, and
    they differ a little. The mean is of ways that lie in the state since the last meeting, so it depends on nothing
    that the step computes, and can run beside it. A worker that the step's guard has made `idle` does not move by
    itself, and takes the outer step from where it stands.

    On another number of workers a run goes on with the means of the anchors, of the last ways, of the outer states and
    of the workers' parameters.

    Args:
        every: steps from one meeting to the next (the paper's H), or a schedule of them.
        outer: any optax optimiser, such as `sgd(0.7, momentum=0.9, nesterov=True)`.
        codec: how the ways are sent, or None for float32 as they are.
        feedback: whether, or what part of, what a message leaves out is added to the next one.
        exchange: how messages travel: `two_phases`, `gather`, or None for the one that sends least.
        seed: of the codec's random rounding.
        axis: the worker axis.

    Raises:
        ValueError: `every` below 1, `outer` is no optimiser, feedback or an exchange without a codec, or no parameters
            given to `update`.

    >>> update = optax.chain(optax.sgd(1.0), eager_diloco(every=1, outer=optax.sgd(1.0)))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(2), jnp.array([2.0, 6.0]))  # at first a part of their own alone
    Array([-1., -3.], dtype=float32)
    """
    periodic.check_every('eager_diloco', every)
    outer = periodic.check_optimizer('eager_diloco', outer)
    channel = Channel(axis, codec, feedback, exchange, seed)

    def init(params: optax.Params) -> EagerDilocoState:
        own = collectives.per_worker((params, outer.init(params), jax.tree.map(jnp.zeros_like, params)), axis)
        return EagerDilocoState(periodic.start(), own[0], own[1], own[2], remember(params, channel))

    def update(
        updates: optax.Updates, state: EagerDilocoState, params: Any = None, *, idle: Any = False, **_: Any
    ) -> tuple[optax.Updates, EagerDilocoState]:
        periodic.check_given('eager_diloco', params)
        updates = periodic.still(updates, idle)

        def meet() -> tuple[Any, ...]:
            back = periodic.way(state.anchor, optax.apply_updates(params, updates), axis)
            mean, memory = average(state.last, state.memory, channel)
            gradient = jax.tree.map(lambda m, new, old: m + (new - old) / collectives.size(axis), mean, back, state.last)
            step, outer_state = outer.update(gradient, state.outer, state.anchor)
            anchor = optax.apply_updates(state.anchor, step)
            return *collectives.per_worker((periodic.way(anchor, params, axis), anchor, outer_state, back), axis), memory

        def stay() -> tuple[Any, ...]:
            return collectives.per_worker(updates, axis), state.anchor, state.outer, state.last, state.memory

        due, clock = periodic.tick(state.clock, every)
        updates, *after = lax.cond(due, meet, stay)
        return updates, EagerDilocoState(clock, *after)

    return optax.GradientTransformationExtraArgs(init, update)
