"""DES-LOC: local training that averages parameters and the optimiser's moments at separate periods (Iacob et al. 2025,
arXiv 2505.22549).
"""

from collections.abc import Mapping
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
from jaxdist.core.conditional import when
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.registry import algorithm


class DesLocState(NamedTuple):
    """The optimiser's state, and the parameters of the last round.

    Attributes:
        inner: the state of this worker's optimiser.
        anchor: with a codec, the parameters of the last round, replicated; else ().
    """

    inner: optax.OptState
    anchor: optax.Params


def _local_adam(gradients: np.ndarray, start: np.ndarray, every: int, first: int, second: int) -> np.ndarray:
    """The same with Adam of rate 0.1 in plain NumPy, for a law: gradients [T, W, ...] to updates [T, W, ...]."""
    x = np.repeat(start[None], gradients.shape[1], 0)
    mu, nu, updates = np.zeros_like(x), np.zeros_like(x), []
    average = lambda values, due: np.broadcast_to(values.mean(0), values.shape) if due else values  # noqa: E731
    for t, g in enumerate(gradients, 1):
        mu, nu = 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g**2
        new = x - 0.1 * mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8)
        new, mu, nu = average(new, t % every == 0), average(mu, t % first == 0), average(nu, t % second == 0)
        updates.append(new - x)
        x = new
    return np.stack(updates)


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
    """Local steps of an optimiser; parameters, first and second moments are averaged at separate periods.

    It takes gradients and has the optimiser inside, so that it can average the moments; it is the whole line, or its
    last transformation. Nothing is communicated between rounds; in a round of the parameters these are sent as in
    `average`, and in a round of a moment this moment. Any real-valued field of the optimiser's state can be averaged by
    its name: `mu` and `nu` of Adam, `trace` of momentum. Fields without a period stay local; with none at all this is
    `optimizer | average(every)`. Moments are sent in float32 without the codec, whose error could make a second moment
    negative. On a worker whose step the guard rejects, neither parameters nor optimiser take the local step; it takes
    part in rounds with its present values. On another number of workers all start from the mean of the workers'
    parameters, and of their moments.

    Args:
        optimizer: the local optimiser, any of optax, or a chain.
        every: steps from one round of the parameters to the next (the paper's K_x), or a schedule of them.
        moments: for each field's name, the steps from one of its rounds to the next; None for the paper's `mu` at 3
            times `every` and `nu` at 6 times.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` or a period is below 1, `optimizer` is not an optimiser, its state has no field of a name,
            feedback or an exchange is given without a codec, or `update` is given no parameters.

    >>> update = des_loc(optax.sgd(1.0, momentum=0.9), every=1, moments={'trace': 1})
    >>> def run(p, g):
    ...     moved, state = update.update(g, update.init(p), p)
    ...     return p + moved, state.own.inner[0].trace
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(2), jnp.array([1.0, 3.0]))
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
        grads: optax.Updates, state: DesLocState, params: optax.Params, *, rejected: Any, step: Any, **extra: Any
    ) -> tuple[optax.Updates, DesLocState]:
        moves, after = inner.update(grads, state.inner, params, **extra)
        # The guard leaves the state of an algorithm with diverging workers to the algorithm: a rejected gradient must
        # not enter the moments. They are averaged all the same, since other workers wait in that collective.
        after = jax.tree.map(lambda new, old: jnp.where(rejected, old, new), after, state.inner)
        for name, period in periods.items():
            after = _average_moments(after, name, (step + 1) % period == 0, axis)
        return moves, state._replace(inner=collectives.pvary(after, axis))

    def message(local: periodic.Local, state: DesLocState) -> optax.Params:
        return periodic.send_parameters(local, state.anchor)

    def receive(local: periodic.Local, state: DesLocState, mean: Any) -> tuple[optax.Updates, DesLocState]:
        updates, anchor = periodic.receive_parameters(local, state.anchor, mean)
        return updates, state._replace(anchor=anchor)

    channel = Channel(axis, codec, feedback, exchange, seed)
    return periodic.periodic('des_loc', every, channel, begin, message, receive, local_step)


def _periods(every: periodic.Every, moments: Mapping[str, int] | None) -> dict[str, int]:
    """The period of each averaged field: the given ones, or the paper's defaults."""
    if moments is None:
        if callable(every):
            raise InputError('des_loc: with a schedule for every, moments=... must give the period of each moment')
        return {'mu': 3 * every, 'nu': 6 * every}
    for name, period in moments.items():
        if not isinstance(period, int) or period < 1:
            raise InputError(f'des_loc: moments[{name!r}]={period!r} must be a whole number, 1 or more')
    return dict(moments)


def _names(path: tuple[Any, ...]) -> set[str]:
    """The names of the fields on the path to a leaf of an optimiser's state."""
    return {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}


def _check_names(periods: Mapping[str, int], state: optax.OptState) -> None:
    """Checks that the optimiser's state has a real-valued field of each name."""
    fields = [_names(path) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0] if _is_real(leaf)]
    known = sorted(set().union(*fields))
    for name in periods:
        if name not in known:
            raise InputError(f"des_loc: the optimiser's state has nothing called {name!r} to average; it has {known}")


def _average_moments(state: optax.OptState, name: str, due: jax.Array, axis: str) -> optax.OptState:
    """The state with the fields of this name replaced by their means over workers, if a round is due."""
    leaves, like = jax.tree_util.tree_flatten_with_path(state)
    chosen = [i for i, (path, leaf) in enumerate(leaves) if name in _names(path) and _is_real(leaf)]
    local = collectives.pvary([leaves[i][1] for i in chosen], axis)
    averaged = when(due, lambda local: collectives.pvary(collectives.pmean(local, axis), axis), local)
    new = dict(zip(chosen, averaged, strict=True))
    return jax.tree.unflatten(like, [new.get(i, leaf) for i, (_, leaf) in enumerate(leaves)])


def _is_real(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
