"""The wrapper of algorithms that train locally and synchronise every few steps: when a round is due, and what is sent.

An algorithm's file defines what a worker sends in a round (`message`) and how it uses the mean over workers
(`receive`). The rest is here: the step counter, the compressed mean, the guard, and the one conditional (`when`).
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxdist.codecs import _compressed_mean as compressed
from jaxdist.codecs._compressed_mean import Channel, CompressionState
from jaxdist.core import collectives
from jaxdist.core.conditional import when
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import check_local, synchronised

Every = int | Callable[[jax.Array], Any]
"""Local steps from one synchronisation round to the next (H): a number, or an optax schedule of the steps taken so far.
"""

State = TypeVar('State')


class RoundCounter(NamedTuple):
    """Steps taken, in all and since the last round; replicated.

    Attributes:
        step: steps taken so far, an int32 scalar.
        since: steps taken since the last round, an int32 scalar.
    """

    step: jax.Array
    since: jax.Array


class PeriodicState(NamedTuple, Generic[State]):
    """The state of any algorithm that synchronises periodically.

    Attributes:
        rounds: the step counter.
        own: the algorithm's own state, such as an anchor; its replicated leaves change in a round only.
        compression: the state of the compressed mean.
    """

    rounds: RoundCounter
    own: State
    compression: CompressionState

    @property
    def workers_diverge(self) -> bool:
        """Workers diverge between rounds."""
        return True


class Local(NamedTuple):
    """One worker at the end of its local step.

    Attributes:
        params: this worker's parameters before the step.
        updates: the updates of its local step; zeros where the guard rejected the step.
        step: steps taken before this one.
        axis: the worker axis.
    """

    params: optax.Params
    updates: optax.Updates
    step: jax.Array
    axis: str

    @property
    def moved(self) -> optax.Params:
        """This worker's parameters after the local step."""
        return optax.apply_updates(self.params, self.updates)

    def to(self, params: optax.Params) -> optax.Updates:
        """The updates that move this worker to the given parameters."""
        return displacement(self.params, params, self.axis)


Message = Callable[[Local, State], Any]
Receive = Callable[[Local, State, Any], tuple[Any, State]]
Round = tuple[optax.Updates, State, CompressionState]
LocalStep = Callable[..., tuple[Any, State]]


def periodic(
    name: str,
    every: Every,
    channel: Channel,
    init: Callable[[Any], State],
    message: Message[State],
    receive: Receive[State],
    local: LocalStep[State] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that passes local updates on and synchronises every `every` steps.

    Between rounds nothing is communicated. A worker whose step the guard rejects does not move by itself, and takes
    part in rounds with its present parameters.

    Args:
        name: the algorithm's name, for error messages.
        every: local steps from one round to the next, or a schedule of them.
        channel: how the mean over workers is computed.
        init: `params -> state`, the algorithm's own state before the first step.
        message: `(local, state) -> tree`, the tree that is averaged over workers in a round.
        receive: `(local, state, mean) -> (updates, state)`: this worker's updates in a round, and the state after it.
        local: `(updates, state, params, *, rejected, step, **extra) -> (updates, state)` at every step, for algorithms
            with an optimiser inside; None passes updates on unchanged.

    Raises:
        InputError: `every` is below 1; in `init`, feedback or an exchange is given without a codec; in `update`, no
            parameters are given.

    >>> channel = Channel()
    >>> mean = periodic('mean', 2, channel, lambda p: (), lambda x, s: x.moved, lambda x, s, m: (x.to(m), s))
    >>> run = lambda p: mean.update(jnp.ones(()), mean.init(p), p)[1].rounds.since
    >>> jax.jit(jax.vmap(run, axis_name='workers', out_axes=None))(jnp.arange(2.0))
    Array(1, dtype=int32)
    """
    check_every(name, every)

    def begin(params: Any) -> PeriodicState[State]:
        return PeriodicState(first_round(), init(params), compressed.init(params, channel))

    def update(
        updates: Any, state: PeriodicState[State], params: Any = None, *, rejected: Any = False, **extra: Any
    ) -> tuple[Any, PeriodicState[State]]:
        require_params(name, params)
        check_local(name, updates, channel.axis)
        own = state.own
        if local is not None:
            updates, own = local(updates, own, params, rejected=rejected, step=state.rounds.step, **extra)
        updates = collectives.pvary(mask_rejected(updates, rejected), channel.axis)

        def synchronise(before: Round[State]) -> Round[State]:
            updates, own, compression = before
            worker = Local(params, updates, state.rounds.step, channel.axis)
            mean, compression = compressed.mean(message(worker, own), compression, channel)
            moves, after = receive(worker, own, mean)
            return collectives.pvary(moves, channel.axis), varying_like(after, own, channel.axis), compression

        due, rounds = advance(state.rounds, every)
        # All workers have the same counter, so none waits alone in a collective of the round.
        moves, own, compression = when(due, synchronise, (updates, own, state.compression))
        return synchronised(name, moves), PeriodicState(rounds, own, compression)

    return optax.GradientTransformationExtraArgs(begin, update)


def send_parameters(local: Local, anchor: Any) -> Any:
    """A worker's message for the mean of the parameters: its parameters, or how far they are from the anchor.

    A codec needs an anchor, since its error shrinks with what is sent; an exact mean needs none in memory.

    Args:
        local: the worker.
        anchor: the parameters of the last round, or () for none.

    >>> send_parameters(Local(jnp.array(5.0), jnp.array(1.0), jnp.int32(0), 'workers'), anchor=())
    Array(6., dtype=float32)
    """
    return local.moved if _is_none(anchor) else displacement(anchor, local.moved, local.axis)


def receive_parameters(local: Local, anchor: Any, mean: Any) -> tuple[Any, Any]:
    """The updates that move a worker to the mean of the parameters, and the anchor after the round.

    >>> move = lambda x: receive_parameters(Local(x, x, jnp.int32(0), 'workers'), (), 5.0)[0]
    >>> jax.vmap(move, axis_name='workers')(jnp.array([1.0, 2.0]))
    Array([4., 3.], dtype=float32)
    """
    if _is_none(anchor):
        return local.to(mean), anchor
    anchor = jax.tree.map(lambda a, m: (a + m).astype(a.dtype), anchor, mean)
    return local.to(anchor), anchor


def first_round() -> RoundCounter:
    """The counter before the first step.

    >>> first_round()
    RoundCounter(step=Array(0, dtype=int32), since=Array(0, dtype=int32))
    """
    return RoundCounter(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def advance(rounds: RoundCounter, every: Every) -> tuple[jax.Array, RoundCounter]:
    """Whether a round is due at the end of this step, and the counter after it.

    A schedule is evaluated at the steps taken before this one; its value is rounded, and 1 at least.

    >>> due, rounds = advance(first_round(), every=2)
    >>> bool(due), bool(advance(rounds, every=2)[0])
    (False, True)
    """
    now = jnp.maximum(jnp.rint(jnp.asarray(every(rounds.step))), 1) if callable(every) else every
    since = rounds.since + 1
    due = since >= now
    return due, RoundCounter(rounds.step + 1, jnp.where(due, 0, since))


def mask_rejected(updates: Any, rejected: Any) -> Any:
    """The updates, or zeros where the guard rejected this worker's step.

    >>> mask_rejected(jnp.ones(2), rejected=True)
    Array([-0., -0.], dtype=float32)
    """
    return jax.tree.map(lambda u: jnp.where(rejected, -0.0, u).astype(u.dtype), updates)  # p + -0.0 is p, for any p


def displacement(start: Any, end: Any, axis: str = collectives.AXIS) -> Any:
    """`end - start`, leaf by leaf, typed as varying over workers.

    >>> jax.vmap(lambda x: displacement(x, 3.0), axis_name='workers')(jnp.array([1.0, 2.0]))
    Array([2., 1.], dtype=float32)
    """
    return collectives.pvary(jax.tree.map(lambda a, b: jnp.asarray(b - a), start, end), axis)


def require_params(name: str, params: Any) -> None:
    """Checks that `update` was given the parameters.

    Raises:
        InputError: `params` is None.

    >>> require_params('average', {'w': 1.0})
    """
    if params is None:
        raise InputError(f'{name} moves parameters, so update() needs them: update(updates, state, params)')


def check_every(name: str, every: Every, argument: str = 'every') -> None:
    """Checks a number of local steps, or a schedule of them.

    Args:
        name: the algorithm's name, for the error message.
        every: the number of steps, or a schedule.
        argument: the name of the algorithm's argument, for the error message.

    Raises:
        InputError: `every` is neither a whole number, 1 or more, nor a schedule.

    >>> check_every('average', 0)
    Traceback (most recent call last):
    jaxdist.InputError: average: every=0 must be a whole number, 1 or more, or a schedule of them
    """
    whole = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if not whole and not _is_schedule(every):
        raise InputError(f'{name}: {argument}={every!r} must be a whole number, 1 or more, or a schedule of them')


def varying_like(new: Any, old: Any, axis: str) -> Any:
    """`new`, typed as varying where `old` is: a round must not change the type of what it updates.

    >>> varying_like({'w': 1.0}, {'w': 2.0}, 'workers')
    {'w': 1.0}
    """
    if not collectives.is_manual(axis):
        return new
    return jax.tree.map(lambda n, o: collectives.pvary(n, axis) if collectives.varies(o, axis) else n, new, old)


def _is_none(anchor: Any) -> bool:
    return isinstance(anchor, tuple) and anchor == ()


def _is_schedule(x: Any) -> bool:
    return callable(x) and not isinstance(x, optax.GradientTransformation)
