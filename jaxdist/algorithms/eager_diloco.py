"""Eager DiLoCo: a worker's own way counts at once, others' one meeting late (Kale et al. 2025, arXiv 2502.12996)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import Channel, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.core import collectives
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.registry import algorithm


class EagerDilocoState(NamedTuple):
    """The outer optimisation of one worker; varies over workers.

    Attributes:
        anchor: its parameters after its last outer step.
        outer: its outer optimiser's state.
        last: its pseudo-gradient of the last round, which is sent in the next.
    """

    anchor: optax.Params
    outer: optax.OptState
    last: optax.Updates


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
            laws.matches_reference(lambda puts, start: _eagerly(puts, start, every=3)),
            laws.sends(bytes_sent(), every=3),
        ),
    },
    syncs='parameters',
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
        every: local steps from one round to the next (the paper's H), or a schedule of them.
        outer: any optax optimiser, such as `sgd(0.7, momentum=0.9, nesterov=True)`.
        codec, feedback, exchange, seed: the compressed mean, see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` below 1, `outer` is no optimiser, feedback or an exchange without a codec, or no parameters
            given to `update`.

    >>> update = optax.chain(optax.sgd(1.0), eager_diloco(every=1, outer=optax.sgd(1.0)))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(2), jnp.array([2.0, 6.0]))  # at first a part of their own alone
    Array([-1., -3.], dtype=float32)
    """
    outer = check_optimizer('eager_diloco', outer)

    def message(local: periodic.Local, state: EagerDilocoState) -> Any:
        del local
        return state.last

    def receive(local: periodic.Local, state: EagerDilocoState, mean: Any) -> tuple[Any, EagerDilocoState]:
        new, w = periodic.displacement(local.moved, state.anchor, axis), collectives.axis_size(axis)
        gradient = jax.tree.map(lambda m, d, last: m + (d - last) / w, mean, new, state.last)
        step, outer_state = outer.update(gradient, state.outer, state.anchor)
        anchor = optax.apply_updates(state.anchor, step)
        return local.to(anchor), EagerDilocoState(anchor, outer_state, new)

    def begin(params: optax.Params) -> EagerDilocoState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return EagerDilocoState(*collectives.pvary((params, outer.init(params), zeros), axis))

    channel = Channel(axis, codec, feedback, exchange, seed)
    return periodic.periodic('eager_diloco', every, channel, begin, message, receive)
