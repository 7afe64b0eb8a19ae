"""Decentralised SGD: workers mix their parameters with those of their neighbours on a graph (Lian et al. 2017)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _gossip
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._neighbours import bytes_sent
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int8 import int8
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.registry import algorithm
from jaxdist.graphs.circulant import ring
from jaxdist.graphs.graph import Graph


class Residual(NamedTuple):
    """With error feedback what earlier messages lacked, float32 in the shape of the parameters; else ()."""

    residual: optax.Updates


@algorithm(
    paper='Lian et al. 2017, D-PSGD, arXiv 1705.09056',
    examples={
        'gossip()': (
            laws.conserves_mean(),
            laws.alike_equals_one(),
            laws.brings_closer(ring()),
            laws.sends(bytes_sent()),
        ),
        'gossip(graph=one_peer_exponential(), adapt_first=False, every=2)': (
            laws.conserves_mean(),
            laws.alike_equals_one(),
        ),
        'gossip(codec=int8(), feedback=True, gamma=0.5)': (
            laws.conserves_mean(),
            laws.sends(bytes_sent(codec=int8())),
        ),
    },
    syncs='parameters',
)
def gossip(
    graph: Graph | None = None,
    adapt_first: bool = True,
    every: periodic.Every = 1,
    codec: AnyCodec | None = None,
    feedback: bool = False,
    gamma: float = 1.0,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Passes local updates on, and every `every` steps mixes each worker's parameters with those of its neighbours.

    It stands last in the line, after the optimiser, whose state stays local. A worker sends its parameters once to each
    neighbour. The mean of the workers moves by the mean of their updates; a run evaluates it, and workers differ from
    it. A worker whose step the guard rejects does not move by itself, and mixes all the same.

    With a codec workers mix what was decoded: x <- x + u + gamma sum_j M_ij (q_j - q_i), where q_i is what worker i
    sent. That leaves an error of the size of the codec's; with `feedback` what a message lacked is added to the next
    (DeepSqueeze, Tang et al. 2019, arXiv 1907.07346). `choco` sends differences instead, whose error shrinks.

    On another number of workers all start from the mean of the workers' parameters.

    Args:
        graph: who hears whom, as `static_exponential()`; by default `ring()`.
        adapt_first: whether a worker mixes after its step: x_i <- sum_j M_ij (x_j + u_j). If not, it mixes what it had
            before, as in the paper: x_i <- sum_j M_ij x_j + u_i; then the sending can overlap with the gradient.
        every: local steps from one communication round to the next, or a schedule of them.
        codec: encodes what is sent.
        feedback: whether what a message lacked is added to the next.
        gamma: the share of the way to the weighted mean that a worker goes, at most 1.
        seed: the seed of the codec's stochastic rounding.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `gamma` is not in (0, 1], there is feedback without a codec, or the graph does
            not fit the number of workers.

    >>> update = optax.chain(optax.sgd(1.0), gossip())
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(4), jnp.array([0.0, 3.0, 6.0, 3.0]))
    Array([-2., -3., -4., -3.], dtype=float32)
    """
    if not 0 < gamma <= 1:
        raise InputError(f'gossip: gamma={gamma} must be above 0, and at most 1')
    if feedback and codec is None:
        raise InputError('gossip: feedback=True needs a codec: without one a message lacks nothing')

    def init(params: Any) -> Residual:
        return Residual(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params) if feedback else ())

    def communicate(worker: periodic.Local, state: Residual, around: _gossip.Neighbours) -> tuple[Any, Residual]:
        start = worker.moved if adapt_first else worker.params
        sends = jax.tree.map(jnp.add, start, state.residual) if feedback else start
        pull, sent = around.pull(sends)
        after = Residual(jax.tree.map(jnp.subtract, sends, sent)) if feedback else state
        return _gossip.added(worker.updates, pull, gamma), after

    return _gossip.gossiping('gossip', graph, every, init, communicate, axis=axis, codec=codec, seed=seed)
