"""Gradient tracking: each worker follows the mean gradient of all by gossip (Nedic et al. 2017, DIGing)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _gossip
from jaxdist.codecs import _neighbours as neighbours
from jaxdist.codecs._neighbours import bytes_sent
from jaxdist.core import collectives
from jaxdist.core.protocol import check_local
from jaxdist.core.registry import algorithm
from jaxdist.graphs.graph import Graph


class TrackState(NamedTuple):
    """What is tracked, and of what; a copy for each worker.

    Attributes:
        turn: steps so far, an int32 scalar.
        tracked: the estimate of the mean gradient; over workers its mean is that of the last gradients.
        before: the last gradient.
    """

    turn: jax.Array
    tracked: optax.Updates
    before: optax.Updates


@algorithm(
    paper='Nedic, Olshevsky and Shi 2017, DIGing, arXiv 1607.03218',
    examples={'track()': (laws.tracks_mean(), laws.follows_mean(0.01), laws.sends(bytes_sent()))},
)
def track(graph: Graph | None = None, axis: str = collectives.AXIS) -> optax.GradientTransformationExtraArgs:
    """Replaces each worker's gradient by its estimate of the mean gradient: y <- sum_j M_ij y_j + g - g_before.

    It stands before the optimiser, and `gossip(adapt_first=False)` after it, which together are DIGing: with a constant
    learning rate workers whose data differ come to the minimum of the mean loss. The mean of the estimates is the mean
    of the gradients at every step. What it sends lies ready when the step begins, and is as much again as `gossip`
    sends. The gradient of a step that the guard rejects counts as that of the step before.

    On another number of workers all start from the mean of the estimates and of the gradients.

    Args:
        graph: who hears whom, as `static_exponential()`; by default `ring()`. That of `gossip` need not be the same.
        axis: the worker axis.

    Raises:
        InputError: the graph does not fit the number of workers.

    >>> update = track()
    >>> def run(g):
    ...     state = update.init(g)
    ...     for _ in range(2):
    ...         y, state = update.update(g, state)
    ...     return y
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([0.0, 3.0, 6.0]))
    Array([3., 3., 3.], dtype=float32)
    """

    def init(params: Any) -> TrackState:
        zeros = collectives.pvary(jax.tree.map(jnp.zeros_like, params), axis)
        return TrackState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        updates: Any, state: TrackState, params: Any = None, *, rejected: Any = False, **extra: Any
    ) -> tuple[Any, TrackState]:
        del params, extra
        check_local('track', updates, axis)
        now = jax.tree.map(lambda g, before: jnp.where(rejected, before, g).astype(g.dtype), updates, state.before)
        pull, _ = neighbours.pull(state.tracked, _gossip.rounds_of(graph, axis), state.turn, axis)
        moved = jax.tree.map(lambda y, g, before: y + (g - before), state.tracked, now, state.before)
        tracked = _gossip.added(moved, pull)
        return tracked, TrackState(state.turn + 1, tracked, collectives.pvary(now, axis))

    return optax.GradientTransformationExtraArgs(init, update)
