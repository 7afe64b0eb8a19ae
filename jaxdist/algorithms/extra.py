"""EXTRA: an exact first-order algorithm for decentralised optimisation (Shi et al. 2015)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _gossip
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._neighbours import bytes_sent
from jaxdist.core import collectives
from jaxdist.core.registry import algorithm
from jaxdist.graphs.graph import Graph


class ExtraState(NamedTuple):
    """The step before; a copy for each worker.

    Attributes:
        params: the parameters before it.
        updates: its local updates; both are zeros at first.
    """

    params: optax.Params
    updates: optax.Updates


@algorithm(
    paper='Shi et al. 2015, EXTRA, arXiv 1404.6264',
    examples={
        'extra()': (
            laws.conserves_mean(),
            laws.alike_equals_one(),
            laws.approaches_consensus(0.3),
            laws.sends(bytes_sent()),
        )
    },
    syncs='parameters',
)
def extra(graph: Graph | None = None, axis: str = collectives.AXIS) -> optax.GradientTransformationExtraArgs:
    """Mixes the parameters of this step and of the one before, and applies the difference of their local updates.

    x(1) = M x(0) + u(0), and then x(t + 1) = (I + M) x(t) - (I + M) / 2 x(t - 1) + u(t) - u(t - 1). With a constant
    learning rate workers whose data differ come to the minimum of the mean loss, as with `exact_diffusion`; what it
    sends lies ready when the step begins. It stands last in the line, after `sgd`.

    On another number of workers all start from the means over workers.

    Args:
        graph: who hears whom, the same in every round; by default `ring()`.
        axis: the worker axis.

    Raises:
        InputError: the graph has several rounds, or does not fit the number of workers.

    >>> update = extra()
    >>> run = lambda p: p + update.update(jnp.zeros(()), update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([0.0, 3.0, 6.0]))
    Array([3., 3., 3.], dtype=float32)
    """

    def init(params: Any) -> ExtraState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ExtraState(zeros, zeros)

    def communicate(
        worker: periodic.Local, state: ExtraState, neighbours: _gossip.Neighbours
    ) -> tuple[Any, ExtraState]:
        _gossip.check_one_round('extra', neighbours)
        first = neighbours.turn == 0
        # (I + M) x - (I + M) / 2 before is 2 z + the pull of z, where z = x - before / 2; of the first step M x.
        ahead = jax.tree.map(lambda x, before: x - before / 2, worker.params, state.params)
        pull, _ = neighbours.pull(ahead)
        since = lambda x, before, u, u_before, p: u - u_before + (x - before) * ~first + p  # noqa: E731
        moves = jax.tree.map(since, worker.params, state.params, worker.updates, state.updates, pull)
        moves = jax.tree.map(lambda move, x: move.astype(x.dtype), moves, worker.params)
        return moves, ExtraState(worker.params, worker.updates)

    return _gossip.gossiping('extra', graph, 1, init, communicate, axis=axis)
