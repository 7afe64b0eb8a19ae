"""Exact diffusion and D2: gossip without the bias of data that differ (Yuan et al. 2019, Tang et al. 2018)."""

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


class ExactDiffusionState(NamedTuple):
    """Where each worker's last local step led, before workers were mixed; float32, a copy for each worker."""

    moved: optax.Params


@algorithm(
    paper='Yuan et al. 2019, exact diffusion, arXiv 1702.05122; Tang et al. 2018, D2, arXiv 1803.07068',
    examples={
        'exact_diffusion()': (
            laws.conserves_mean(),
            laws.alike_equals_one(),
            laws.approaches_consensus(0.3),
            laws.sends(bytes_sent()),
        ),
        'exact_diffusion(lazy=False)': (laws.conserves_mean(), laws.alike_equals_one(), laws.sends(bytes_sent())),
    },
    syncs='parameters',
)
def exact_diffusion(
    graph: Graph | None = None, lazy: bool = True, axis: str = collectives.AXIS
) -> optax.GradientTransformationExtraArgs:
    """Mixes workers at every step, and adds what the last step's mixing has taken from a worker's own step.

    psi = x + u, phi = psi + x - psi_before, x <- (I + M) / 2 phi: so with a constant learning rate workers whose data
    differ come to the minimum of the mean loss, where `gossip` stays off it. With `lazy=False` x <- M phi, which is D2:
    faster, and only for graphs whose eigenvalues are above -1/3. It stands last in the line, after `sgd`; it sends as
    much as `gossip`.

    On another number of workers all start from the means of the workers' parameters and steps.

    Args:
        graph: who hears whom, the same in every round; by default `ring()`.
        lazy: whether a worker goes half of the way to the weighted mean.
        axis: the worker axis.

    Raises:
        InputError: the graph has several rounds, or does not fit the number of workers.

    >>> update = exact_diffusion(lazy=False)
    >>> run = lambda p: p + update.update(jnp.zeros(()), update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([0.0, 3.0, 6.0]))
    Array([3., 3., 3.], dtype=float32)
    """

    def init(params: Any) -> ExactDiffusionState:
        return ExactDiffusionState(jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params))

    def communicate(
        worker: periodic.Local, state: ExactDiffusionState, neighbours: _gossip.Neighbours
    ) -> tuple[Any, ExactDiffusionState]:
        _gossip.check_one_round('exact_diffusion', neighbours)
        moved = jax.tree.map(lambda x, u, old: x.astype(old.dtype) + u, worker.params, worker.updates, state.moved)
        corrected = jax.tree.map(lambda new, x, old: new + (x - old), moved, worker.params, state.moved)
        pull, _ = neighbours.pull(corrected)
        mixed = _gossip.added(corrected, pull, 0.5 if lazy else 1.0)
        return worker.to(jax.tree.map(lambda x, p: x.astype(p.dtype), mixed, worker.params)), ExactDiffusionState(moved)

    return _gossip.gossiping('exact_diffusion', graph, 1, init, communicate, axis=axis)
