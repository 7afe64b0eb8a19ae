"""Stochastic gradient push: gossip on directed graphs, with a weight that is pushed along (Assran et al. 2019)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _gossip
from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import collectives
from jaxdist.core.protocol import sharded_as
from jaxdist.core.registry import algorithm
from jaxdist.graphs.circulant import one_peer_exponential
from jaxdist.graphs.graph import Graph


class PushSumState(NamedTuple):
    """How much of the sum a worker has; their mean over workers is 1.

    Attributes:
        weight: a float32 scalar for each worker.
    """

    weight: jax.Array


@algorithm(
    paper='Assran et al. 2019, SGP, arXiv 1811.10792',
    examples={
        'push_sum(graph=one_peer_exponential())': (
            laws.conserves_mean(),
            laws.alike_equals_one(),
            laws.brings_closer(one_peer_exponential()),
        )
    },
    syncs='parameters',
)
def push_sum(graph: Graph | None = None, axis: str = collectives.AXIS) -> optax.GradientTransformationExtraArgs:
    """Passes local updates on, and pushes parts of the parameters to the neighbours at every step.

    Only what a worker gives away has to add up to one, not what it gets, as on any directed graph. Workers mix the
    numerators w z + u and the weights w; the parameters are z = w z / w, at which gradients are taken. Of all graphs
    that `gossip` takes, the weights stay 1, and it is `gossip`. It stands last in the line. What is conserved is the
    mean of the numerators, with one more number to send.

    On another number of workers all start from the mean of the workers' parameters, and with their mean weight, 1.

    Args:
        graph: who sends to whom, as `edges(((0, 1), (1, 2), (2, 0)), directed=True)`; by default `ring()`.
        axis: the worker axis.

    Raises:
        InputError: the graph does not fit the number of workers.

    >>> update = push_sum()
    >>> run = lambda p: p + update.update(jnp.zeros(()), update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([0.0, 3.0, 6.0]))
    Array([3., 3., 3.], dtype=float32)
    """

    def communicate(
        worker: periodic.Local, state: PushSumState, neighbours: _gossip.Neighbours
    ) -> tuple[Any, PushSumState]:
        numerators = jax.tree.map(lambda x, u: state.weight * x + u, worker.params, worker.updates)
        numerators = neighbours.mix(numerators)
        with sharded_as(None):  # it is no parameter
            weight = neighbours.mix(state.weight)
        params = jax.tree.map(lambda x, p: (x / weight).astype(p.dtype), numerators, worker.params)
        return worker.to(params), PushSumState(weight)

    first = lambda params: PushSumState(jnp.ones(()))  # noqa: E731
    return _gossip.gossiping('push_sum', graph, 1, first, communicate, axis=axis, symmetric=False)
