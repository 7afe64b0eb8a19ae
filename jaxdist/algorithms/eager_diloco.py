"""Eager DiLoCo: own pseudo-gradients count at once, those of others one round later (Kale et al. 2025, arXiv
2502.12996).
"""

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
        anchor: this worker's parameters after its last outer step.
        outer: the state of this worker's outer optimiser.
        last: this worker's pseudo-gradient of the last round, which is sent in the next.
    """

    anchor: optax.Params
    outer: optax.OptState
    last: optax.Updates


def _eager_updates(local_updates: np.ndarray, start: np.ndarray, every: int) -> np.ndarray:
    """The same with an outer rate of 1 in plain NumPy, for a law: local updates [T, W, ...] to updates [T, W, ...]."""
    x = anchor = np.repeat(start[None], local_updates.shape[1], 0)
    last, updates = np.zeros_like(x), []
    for t, local in enumerate(local_updates, 1):
        new = x + local
        if t % every == 0:
            pseudo_gradient = anchor - new
            new = anchor = anchor - last.mean(0) - (pseudo_gradient - last) / len(x)
            last = pseudo_gradient
        updates.append(new - x)
        x = new
    return np.stack(updates)


@algorithm(
    paper='Kale et al. 2025, Eager Updates, arXiv 2502.12996',
    examples={
        'eager_diloco(every=3, outer=sgd(1.0))': (
            laws.matches_reference(lambda updates, start: _eager_updates(updates, start, every=3)),
            laws.sends(bytes_sent(), every=3),
        ),
    },
    syncs='parameters',
    overlap='every',
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
    """Passes local updates on; every `every` steps each worker takes an outer step, with the others' last round.

    With D_i the pseudo-gradient `anchor - params` of worker i, its outer gradient is mean_j(last D_j) + (D_i - last
    D_i) / W. It stands last in the line, after the inner optimiser. Anchors and outer optimisers are per worker, and
    differ slightly. Nothing is communicated between rounds; in a round workers send the pseudo-gradients of the round
    before. These are in the state when the step begins, so the mean can overlap with the step's computation. A worker
    whose step the guard rejects does not move by itself, and takes the outer step from its present parameters.

    On another number of workers the anchors, the last pseudo-gradients, the outer states and the workers' parameters
    become their means over workers.

    Args:
        every: local steps from one round to the next (the paper's H), or a schedule of them.
        outer: the outer optimiser, any of optax, such as `sgd(0.7, momentum=0.9, nesterov=True)`.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `outer` is not an optimiser, feedback or an exchange is given without a codec,
            or `update` is given no parameters.

    >>> update = optax.chain(optax.sgd(1.0), eager_diloco(every=1, outer=optax.sgd(1.0)))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(2), jnp.array([2.0, 6.0]))  # own / W: others' come later
    Array([-1., -3.], dtype=float32)
    """
    outer = check_optimizer('eager_diloco', outer)

    def message(local: periodic.Local, state: EagerDilocoState) -> optax.Updates:
        del local  # only values of the last round: a mean of this step's could not overlap with it
        return state.last

    def receive(local: periodic.Local, state: EagerDilocoState, mean: Any) -> tuple[optax.Updates, EagerDilocoState]:
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
