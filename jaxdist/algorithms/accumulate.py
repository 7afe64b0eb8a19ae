"""Accumulation of gradients over several steps before an update, as `optax.MultiSteps`, between synchronisations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import bytes_sent
from jaxdist.codecs.int8 import int8
from jaxdist.core import collectives
from jaxdist.core.conditional import when
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.protocol import check_local, diverging_states
from jaxdist.core.registry import algorithm


class AccumulateState(NamedTuple):
    """The gradients since the last update, and the state of the update.

    Attributes:
        since: steps taken since the last update, an int32 scalar; the same on all workers.
        total: the sum of this worker's gradients since then.
        inner: the state of the update.
    """

    since: jax.Array
    total: optax.Updates
    inner: optax.OptState

    @property
    def workers_diverge(self) -> bool:
        """Whether the update lets workers diverge."""
        return bool(diverging_states(self.inner))


def _momentum_loop(gradients: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Three steps to an update with momentum 0.5, in plain NumPy, for a law: gradients [T, W, ...] to updates."""
    del start
    updates, trace = np.zeros_like(gradients), np.zeros_like(gradients[0, 0])
    for t in range(2, len(gradients), 3):
        trace = 0.5 * trace + gradients[t - 2 : t + 1].mean((0, 1))
        updates[t] = -trace
    return updates


@algorithm(
    paper='none',
    examples={
        'accumulate(every=3, update=mean() | sgd(1.0, momentum=0.5))': (
            laws.matches_reference(_momentum_loop),
            laws.alike_equals_one(),
            laws.sends(bytes_sent(), every=3),
        ),
        'accumulate(every=1, update=mean() | adam(0.1))': (laws.equals('mean() | adam(0.1)'),),
        'accumulate(every=2, update=mean(codec=int8(), feedback=True) | sgd(1.0))': (
            laws.sends(bytes_sent(int8()), every=2),
        ),
    },
    syncs='updates',
)
def accumulate(
    every: int, update: optax.GradientTransformation, axis: str = collectives.AXIS
) -> optax.GradientTransformationExtraArgs:
    """Applies an update to the mean gradient of every `every` steps; at the other steps nothing moves or is sent.

    It is `optax.MultiSteps` around a transformation that synchronises workers. Each worker sums its own gradients, and
    synchronises when the update is due, with a mean of `every` times as many examples for the bytes of one. Schedules
    in the update count updates, not steps. With `--accumulate`, or `make_step(accumulate=)`, a step takes a larger
    batch in parts instead, which gives the same updates with one batch in place of `every`.

    A step that the guard rejects adds nothing. On another number of workers a worker's sum becomes the mean of sums.

    Args:
        every: steps to an update.
        update: the update, such as `mean() | adamw(1e-3)`.
        axis: the worker axis.

    Raises:
        InputError: `every` is not a whole number, 1 or more, or `update` is not a transformation.

    >>> line = accumulate(every=2, update=optax.sgd(1.0))
    >>> first, state = line.update(jnp.array(3.0), line.init(jnp.array(0.0)))
    >>> second, _ = line.update(jnp.array(5.0), state)
    >>> float(first), float(second)
    (-0.0, -4.0)
    """
    if callable(every):
        raise InputError('accumulate: every is a schedule, and must be a number')
    periodic.check_every('accumulate', every)
    inner = check_optimizer('accumulate', update, 'update')

    def begin(params: optax.Params) -> AccumulateState:
        total = collectives.pvary(jax.tree.map(jnp.zeros_like, params), axis)
        return AccumulateState(jnp.zeros((), jnp.int32), total, inner.init(params))

    def step(
        grads: optax.Updates, state: AccumulateState, params: Any = None, *, rejected: Any = False, **extra: Any
    ) -> tuple[optax.Updates, AccumulateState]:
        check_local('accumulate', grads, axis)
        total = jax.tree.map(jnp.add, state.total, periodic.mask_rejected(collectives.pvary(grads, axis), rejected))
        if rejected is not False:  # where workers diverge; what is applied is finite
            extra['rejected'] = jnp.zeros_like(rejected)

        def apply(before: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            _, total, old = before
            moves, new = inner.update(jax.tree.map(lambda t: t / every, total), old, params, **extra)
            return periodic.varying_like((moves, jax.tree.map(jnp.zeros_like, total), new), before, axis)

        nothing = jax.tree.map(lambda g: jnp.full(g.shape, -0.0, g.dtype), grads)  # p + -0.0 is p, for any p
        given = collectives.fixed_point(apply, (nothing, total, state.inner))
        since = state.since + 1
        moves, total, after = when(since == every, apply, given)
        return moves, AccumulateState(since % every, total, after)

    return optax.GradientTransformationExtraArgs(begin, step)
