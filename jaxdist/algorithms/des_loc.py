"""DES-LOC: parameters and an optimiser's moments are averaged, each at a period of its own (Iacob et al. 2025, arXiv
2505.22549).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import Channel, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.registry import algorithm


class DesLocState(NamedTuple):
    """The optimiser's state, and the parameters of the last round.

    Attributes:
        inner: this worker's optimiser state.
        anchor: with a codec, the parameters of the last round, replicated; else ().
    """

    inner: optax.OptState
    anchor: optax.Params


def _local_adam(gradients: np.ndarray, start: np.ndarray, every: int, first: int, second: int) -> np.ndarray:
    """Adam of rate 0.1 in a plain loop, for a law: from gradients [T, W, ...], what each worker moves by."""
    x = np.repeat(start[None], gradients.shape[1], 0)
    mu, nu, moves = np.zeros_like(x), np.zeros_like(x), []
    meet = lambda values, due: np.broadcast_to(values.mean(0), values.shape) if due else values  # noqa: E731
    for t, g in enumerate(gradients, 1):
        mu, nu = 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g**2
        there = x - 0.1 * mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8)
        there, mu, nu = meet(there, t % every == 0), meet(mu, t % first == 0), meet(nu, t % second == 0)
        moves.append(there - x)
        x = there
    return np.stack(moves)


@algorithm(
    paper='Iacob et al. 2025, DES-LOC, arXiv 2505.22549',
    examples={
        "des_loc(optimizer=adam(0.1), every=2, moments={'mu': 3, 'nu': 6})": (
            laws.matches_reference(lambda gradients, start: _local_adam(gradients, start, every=2, first=3, second=6)),
            laws.alike_equals_one(),
            laws.sends_parts((bytes_sent(), 2), (bytes_sent(), 3), (bytes_sent(), 6)),
        ),
        "des_loc(optimizer=sgd(0.1, momentum=0.9), every=1, moments={'trace': 1})": (
            laws.equals('mean() | sgd(0.1, momentum=0.9)'),
        ),
        'des_loc(optimizer=identity(), every=4, moments={})': (laws.equals('average(every=4)'), laws.synchronises(4)),
    },
    syncs='parameters',
)
def des_loc(
    optimizer: optax.GradientTransformation,
    every: periodic.Every,
    moments: Mapping[str, int] | None = None,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Each worker takes the optimiser's steps; parameters, first and second moments meet at periods of their own.

    What goes in are gradients: the optimiser is inside, so that its moments can be reached. Whatever has as many
    numbers as the parameters and a field's name in the optimiser's state can meet: `mu` and `nu` of Adam, `trace` of
    momentum. What is not named stays each worker's own, and without a name at all this is `optimizer |
    average(every)`. Moments are sent as they are, in float32: a codec's error could make a second moment negative.
    The gradient of a worker that the step's guard has made `idle` counts for nothing; it meets where it stands.

    On another number of workers a run goes on with all at the mean of where they were, moments too.

    Args:
        optimizer: any optax optimiser, or a chain of them.
        every: steps from one meeting of the parameters to the next (the paper's K_x), or a schedule of them.
        moments: for each name, the steps from one meeting to the next; None for the paper's `mu`, 3 times `every`, and
            `nu`, 6 times.
        codec, feedback, exchange, seed: the compressed mean, see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` or a period below 1, `optimizer` is none, its state has nothing of a name, feedback or an
            exchange without a codec, or no parameters given to `update`.

    >>> update = des_loc(optax.sgd(1.0, momentum=0.9), every=1, moments={'trace': 1})
    >>> def run(p, g):
    ...     moved, state = update.update(g, update.init(p), p)
    ...     return p + moved, state.own.inner[0].trace
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(2), jnp.array([1.0, 3.0]))
    (Array([-2., -2.], dtype=float32), Array([2., 2.], dtype=float32))
    """
    inner = check_optimizer('des_loc', optimizer, 'optimizer')
    periodic.check_every('des_loc', every)
    periods = _periods(every, moments)

    def begin(params: optax.Params) -> DesLocState:
        state = inner.init(params)
        _check_names(periods, state)
        return DesLocState(collectives.pvary(state, axis), params if codec is not None else ())

    def local_step(
        grads: optax.Updates, state: DesLocState, params: Any, *, rejected: Any, step: Any, **extra: Any
    ) -> tuple[optax.Updates, DesLocState]:
        moves, after = inner.update(grads, state.inner, params, **extra)
        after = jax.tree.map(lambda new, old: jnp.where(rejected, old, new), after, state.inner)
        for name, period in periods.items():
            after = _average_moments(after, name, (step + 1) % period == 0, axis)
        return moves, state._replace(inner=collectives.pvary(after, axis))

    def message(local: periodic.Local, state: DesLocState) -> Any:
        return local.moved if codec is None else periodic.displacement(state.anchor, local.moved, axis)

    def receive(local: periodic.Local, state: DesLocState, mean: Any) -> tuple[Any, DesLocState]:
        if codec is None:
            return local.to(mean), state
        anchor = jax.tree.map(lambda a, m: (a + m).astype(a.dtype), state.anchor, mean)
        return local.to(anchor), state._replace(anchor=anchor)

    channel = Channel(axis, codec, feedback, exchange, seed)
    return periodic.periodic('des_loc', every, channel, begin, message, receive, local_step)


def _periods(every: periodic.Every, moments: Mapping[str, int] | None) -> dict[str, int]:
    if moments is None:
        if callable(every):
            raise InputError('des_loc: with a schedule for every, moments=... must say when they meet')
        return {'mu': 3 * every, 'nu': 6 * every}
    for name, period in moments.items():
        if not isinstance(period, int) or period < 1:
            raise InputError(f'des_loc: moments[{name!r}]={period!r} must be a whole number, 1 or more')
    return dict(moments)


def _names(path: tuple[Any, ...]) -> set[str]:
    """The names of fields on the way to a leaf of an optimiser's state."""
    return {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}


def _check_names(periods: Mapping[str, int], state: Any) -> None:
    real = [_names(path) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0] if _is_real(leaf)]
    there = sorted(set().union(*real))
    for name in periods:
        if name not in there:
            raise InputError(f"des_loc: the optimiser's state has nothing called {name!r} to average; it has {there}")


def _average_moments(state: Any, name: str, due: jax.Array, axis: str) -> Any:
    """The state with the means over workers of what has this name, where that is due."""
    leaves, like = jax.tree_util.tree_flatten_with_path(state)
    chosen = [i for i, (path, leaf) in enumerate(leaves) if name in _names(path) and _is_real(leaf)]
    mine = collectives.pvary([leaves[i][1] for i in chosen], axis)
    met = lax.cond(due, lambda: collectives.pvary(collectives.pmean(mine, axis), axis), lambda: mine)
    new = dict(zip(chosen, met, strict=True))
    return jax.tree.unflatten(like, [new.get(i, leaf) for i, (_, leaf) in enumerate(leaves)])


def _is_real(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
