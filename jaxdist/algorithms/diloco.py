"""DiLoCo: workers train alone, and an outer optimiser steps along what came of it (Douillard et al. 2023, arXiv
2311.08105).
"""

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
from jaxdist.codecs.int4 import int4
from jaxdist.core.registry import algorithm


class DilocoState(NamedTuple):
    """When the workers last met, and where.

    Attributes:
        clock: steps taken, and those since the last meeting.
        anchor: the parameters of the last meeting, which all share.
        outer: the outer optimiser's state, which all share.
        memory: what the codec remembers.
    """

    clock: periodic.Clock
    anchor: optax.Params
    outer: optax.OptState
    memory: Memory

    @property
    def works_locally(self) -> bool:
        """Workers differ on purpose between meetings."""
        return True


def left_out(state: DilocoState) -> Any:
    """What the messages of a state left out of the ways that workers came, for laws of error feedback.

    >>> import jax.numpy as jnp
    >>> left_out(DilocoState((), (), (), Memory(residual=jnp.ones(1), estimate=(), warm=(), key=())))
    Array([-1.], dtype=float32)
    """
    return jax.tree.map(jnp.negative, state.memory.residual)  # what is sent are the ways back


NESTEROV = 'sgd(0.7, momentum=0.9, nesterov=True)'


@algorithm(
    paper='Douillard et al. 2023, DiLoCo, arXiv 2311.08105',
    examples={
        f'diloco(every=4, outer={NESTEROV})': (laws.meets(4), laws.one_when_alike(), laws.sends(bytes_sent(), every=4)),
        f'diloco(every=1, outer={NESTEROV})': (laws.equals(f'mean() | scale(-1.0) | {NESTEROV}'),),
        'diloco(every=3, outer=sgd(1.0))': (laws.equals('average(every=3)'), laws.conserves_mean()),
        'diloco(every=2, outer=sgd(1.0), codec=int4(), feedback=True)': (
            laws.conserves_mean(left_out),
            laws.sends(bytes_sent(int4()), every=2),
        ),
    },
    meets='parameters',
)
def diloco(
    every: periodic.Every,
    outer: optax.GradientTransformation,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Leaves each worker its own updates; every `every` steps an outer optimiser steps from where they last met.

    What it is given for a gradient is the mean of the ways back, from where each worker has come to that anchor. All
    workers go on from the new anchor; the inner optimiser's state, before this link, stays each worker's own. Between
    two meetings nothing crosses the worker axis. A worker that the step's guard has made `idle` does not move by
    itself, and meets the others where it stands.

    Lines of the field: SparseLoCo (Sarfi et al. 2025, arXiv 2508.15706) is `outer=sgd(1.0)` with a sparse codec and
    `feedback=0.95`, which forgets; MuLoCo (Therien et al. 2025, arXiv 2505.23725) has `contrib.muon(...)` before this
    link, `codec=int2()` and `feedback=True`.

    On another number of workers a run goes on from the anchor and the outer state as they are, with all workers at the
    mean of where they were.

    Args:
        every: steps from one meeting to the next (the paper's H, 500), or a schedule of them.
        outer: any optax optimiser; the paper's is `sgd(0.7, momentum=0.9, nesterov=True)`.
        codec: how the ways are sent, or None for float32 as they are.
        feedback: whether, or what part of, what a message leaves out is added to the next one.
        exchange: how messages travel: `two_phases`, `gather`, or None for the one that sends least.
        seed: of the codec's random rounding.
        axis: the worker axis.

    Raises:
        ValueError: `every` below 1, `outer` is no optimiser, feedback or an exchange without a codec, or no parameters
            given to `update`.

    >>> update = optax.chain(optax.sgd(1.0), diloco(every=1, outer=optax.sgd(0.5)))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-1.5, -1.5, -1.5], dtype=float32)
    """
    periodic.check_every('diloco', every)
    outer = periodic.check_optimizer('diloco', outer)
    channel = Channel(axis, codec, feedback, exchange, seed)

    def init(params: optax.Params) -> DilocoState:
        return DilocoState(periodic.start(), params, outer.init(params), remember(params, channel))

    def update(
        updates: optax.Updates, state: DilocoState, params: Any = None, *, idle: Any = False, **_: Any
    ) -> tuple[optax.Updates, DilocoState]:
        periodic.check_given('diloco', params)
        updates = periodic.still(updates, idle)

        def meet() -> tuple[Any, ...]:
            back = periodic.way(state.anchor, optax.apply_updates(params, updates), axis)
            gradient, memory = average(back, state.memory, channel)
            step, outer_state = outer.update(gradient, state.outer, state.anchor)
            anchor = optax.apply_updates(state.anchor, step)
            return periodic.way(anchor, params, axis), anchor, outer_state, memory

        def stay() -> tuple[Any, ...]:
            return collectives.per_worker(updates, axis), state.anchor, state.outer, state.memory

        due, clock = periodic.tick(state.clock, every)
        updates, *after = lax.cond(due, meet, stay)
        return updates, DilocoState(clock, *after)

    return optax.GradientTransformationExtraArgs(init, update)
