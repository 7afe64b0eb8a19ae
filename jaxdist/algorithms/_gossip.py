"""The wrapper of algorithms in which workers mix with their neighbours on a graph instead of with all workers.

An algorithm's file defines what happens in a communication round (`communicate`). The rest is here: the graph for the
number of workers that there is, the counters, the guard, and the conditional for rounds that are not at every step.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs import _neighbours as neighbours
from jaxdist.codecs.codec import AnyCodec
from jaxdist.core import collectives
from jaxdist.core.conditional import when
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import check_local, synchronised
from jaxdist.graphs.circulant import ring
from jaxdist.graphs.graph import Graph, Round, build, matrix

State = TypeVar('State')


class GossipState(NamedTuple, Generic[State]):
    """The state of any algorithm that mixes parameters with those of neighbours.

    Attributes:
        rounds: the step counter.
        turn: communication rounds so far, an int32 scalar: it says whose turn a round of the graph is.
        own: the algorithm's own state.
    """

    rounds: periodic.RoundCounter
    turn: jax.Array
    own: State

    @property
    def workers_diverge(self) -> bool:
        """Neighbours come closer to each other, and never become the same."""
        return True


class Neighbours(NamedTuple):
    """The neighbours of this worker in one communication round.

    Attributes:
        rounds: those of the graph.
        turn: communication rounds before this one.
        axis: the worker axis.
        codec, seed: how what is sent is encoded.
    """

    rounds: tuple[Round, ...]
    turn: jax.Array
    axis: str
    codec: AnyCodec | None = None
    seed: int = 0

    def pull(self, tree: Any) -> tuple[Any, Any]:
        """How they pull this worker, and what it sent, decoded: see `jaxdist.codecs._neighbours.pull`."""
        return neighbours.pull(tree, self.rounds, self.turn, self.axis, self.codec, self.seed)

    def mix(self, tree: Any) -> Any:
        """The weighted sum of this worker's values and those of its neighbours."""
        pull, _ = self.pull(tree)
        sums = [tuple(float(total) for total in matrix(each).sum(axis=1)) for each in self.rounds]
        now = self.turn % len(sums), collectives.axis_index(self.axis)
        return jax.tree.map(lambda x, p: (jnp.asarray(sums, p.real.dtype)[now] * x + p).astype(x.dtype), tree, pull)


Communicate = Callable[[periodic.Local, State, Neighbours], tuple[Any, State]]


def rounds_of(graph: Graph | None, axis: str, *, symmetric: bool = True) -> tuple[Round, ...]:
    """The rounds of a graph, or of a ring, for the number of workers of the axis.

    Raises:
        InputError: the graph does not fit so many workers, or is no graph.

    >>> jax.vmap(lambda x: x + len(rounds_of(None, 'w')), axis_name='w')(jnp.zeros(2))
    Array([1., 1.], dtype=float32)
    """
    given: Any = ring() if graph is None else graph
    if not isinstance(given, Graph):
        name = getattr(given, '__name__', type(given).__name__)
        cure = f'call it, as in graph={name}()' if callable(given) else 'take one such as ring()'
        raise InputError(f'graph={name} is no graph: {cure}')
    return build(given, collectives.axis_size(axis), symmetric=symmetric)


def gossiping(
    name: str,
    graph: Graph | None,
    every: periodic.Every,
    init: Callable[[Any], State],
    communicate: Communicate[State],
    *,
    axis: str,
    codec: AnyCodec | None = None,
    seed: int = 0,
    symmetric: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that passes local updates on, and every `every` steps mixes with neighbours.

    Args:
        name: the algorithm's name, for error messages.
        graph: the graph; None for a ring.
        every: local steps from one communication round to the next, or a schedule of them.
        init: `params -> state`, the algorithm's own state before the first step; it varies over workers.
        communicate: `(local, state, neighbours) -> (updates, state)` in a communication round.
        axis: the worker axis.
        codec, seed: how what is sent is encoded.
        symmetric: whether weights must lead to the mean of the workers.

    Raises:
        InputError: `every` is below 1, or the codec does not fit; in `update`, no parameters are given, or the graph
            does not fit the number of workers.

    >>> mixed = lambda worker, state, around: (worker.to(around.mix(worker.moved)), state)
    >>> update = gossiping('gossip', None, 1, lambda params: (), mixed, axis='workers')
    >>> run = lambda p: p + update.update(jnp.zeros(()), update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([0.0, 3.0, 6.0]))
    Array([3., 3., 3.], dtype=float32)
    """
    periodic.check_every(name, every)

    def begin(params: Any) -> GossipState[State]:
        neighbours.check_codec(name, params, codec)
        own = collectives.pvary(init(params), axis)
        return GossipState(periodic.first_round(), jnp.zeros((), jnp.int32), own)

    def update(
        updates: Any, state: GossipState[State], params: Any = None, *, rejected: Any = False, **extra: Any
    ) -> tuple[Any, GossipState[State]]:
        del extra
        periodic.require_params(name, params)
        check_local(name, updates, axis)
        rounds = rounds_of(graph, axis, symmetric=symmetric)
        updates = collectives.pvary(periodic.mask_rejected(updates, rejected), axis)

        def mix(before: tuple[Any, State]) -> tuple[Any, State]:
            worker = periodic.Local(params, before[0], state.rounds.step, axis)
            return communicate(worker, before[1], Neighbours(rounds, state.turn, axis, codec, seed))

        due, counter = periodic.advance(state.rounds, every)
        # All workers have the same counter, so none waits alone for its neighbours.
        moves, own = mix((updates, state.own)) if every == 1 else when(due, mix, (updates, state.own))
        after = GossipState(counter, state.turn + jnp.asarray(due, jnp.int32), own)
        return synchronised(name, moves), after

    return optax.GradientTransformationExtraArgs(begin, update)


def check_one_round(name: str, neighbours: Neighbours) -> None:
    """Checks that a graph is the same in every round.

    Raises:
        InputError: it has several rounds.

    >>> check_one_round('choco', Neighbours((Round((1.0,), (), ()),), jnp.int32(0), 'workers'))
    """
    if len(neighbours.rounds) > 1:
        raise InputError(
            f'{name}: the graph has {len(neighbours.rounds)} rounds, and what a worker remembers is of one: take a '
            'graph that stays the same, as ring() or static_exponential()'
        )


def added(tree: Any, pull: Any, scale: float = 1.0) -> Any:
    """`tree + scale * pull`, in the dtypes of the tree.

    >>> added({'w': jnp.float32(1.0)}, {'w': jnp.float32(2.0)}, 0.5)
    {'w': Array(2., dtype=float32)}
    """
    return jax.tree.map(lambda x, p: (x + scale * p).astype(x.dtype), tree, pull)
