"""CHOCO-SGD: gossip of compressed differences, whose error shrinks (Koloskova, Stich and Jaggi 2019)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _gossip
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._neighbours import bytes_sent
from jaxdist.codecs.bf16 import bf16
from jaxdist.codecs.codec import AnyCodec
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.registry import algorithm
from jaxdist.graphs.graph import Graph


class ChocoState(NamedTuple):
    """What workers know of each other; float32 in the shape of the parameters, a copy for each worker.

    Attributes:
        public: what this worker has sent so far, as its neighbours know it.
        around: the weighted mean of what this worker and its neighbours have sent so far.
    """

    public: optax.Updates
    around: optax.Updates


@algorithm(
    paper='Koloskova, Stich and Jaggi 2019, CHOCO-SGD, arXiv 1902.00340',
    examples={
        'choco(codec=bf16(), gamma=1.0)': (
            laws.conserves_mean(),
            laws.approaches_consensus(0.02),
            laws.sends(bytes_sent(codec=bf16())),
        ),
        'choco(codec=top_k(k=26, block=256), gamma=0.2, every=2)': (laws.conserves_mean(),),
    },
    syncs='parameters',
)
def choco(
    codec: AnyCodec,
    gamma: float,
    graph: Graph | None = None,
    every: periodic.Every = 1,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Passes local updates on, and every `every` steps mixes what workers have sent of their parameters so far.

    A worker sends the compressed difference between its parameters and what it has sent before, q = C(x + u - public);
    then public <- public + q, around <- around + sum_j M_ij q_j, and x <- x + u + gamma (around - public). As workers
    come to rest, so do the differences: the error of the codec goes to zero with them. It stands last in the line.

    On another number of workers all start from the means of the workers' parameters and of what they had sent.

    Args:
        codec: encodes the differences.
        gamma: the consensus step size: the coarser the codec and the larger the graph, the smaller. On a ring of 8,
            `top_k` of a tenth converges with 0.2, and diverges with 0.4; `sign` converges with 0.8.
        graph: who hears whom, in the same way in every round; by default `ring()`.
        every: local steps from one communication round to the next, or a schedule of them.
        seed: the seed of the codec's stochastic rounding.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `gamma` is not in (0, 1], or the graph has several rounds, or does not fit the
            number of workers.

    >>> from jaxdist.codecs.int8 import int8
    >>> update = choco(int8(), gamma=1.0)
    >>> run = lambda p: p + update.update(jnp.zeros(()), update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([0.0, 3.0, 6.0]))
    Array([3., 3., 3.], dtype=float32)
    """
    if not 0 < gamma <= 1:
        raise InputError(f'choco: gamma={gamma} must be above 0, and at most 1')

    def init(params: Any) -> ChocoState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return ChocoState(zeros, zeros)

    def communicate(
        worker: periodic.Local, state: ChocoState, neighbours: _gossip.Neighbours
    ) -> tuple[Any, ChocoState]:
        _gossip.check_one_round('choco', neighbours)
        ahead = jax.tree.map(lambda x, public: x.astype(jnp.float32) - public, worker.moved, state.public)
        pull, sent = neighbours.pull(ahead)
        public = jax.tree.map(jnp.add, state.public, sent)
        around = jax.tree.map(lambda a, q, p: a + q + p, state.around, sent, pull)
        difference = jax.tree.map(jnp.subtract, around, public)
        return _gossip.added(worker.updates, difference, gamma), ChocoState(public, around)

    return _gossip.gossiping('choco', graph, every, init, communicate, axis=axis, codec=codec, seed=seed)
