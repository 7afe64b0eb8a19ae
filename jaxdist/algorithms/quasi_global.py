"""Quasi-global momentum: momentum of how the mixed parameters move, not of local gradients (Lin et al. 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import check_local
from jaxdist.core.registry import algorithm


class QuasiGlobalState(NamedTuple):
    """A copy for each worker.

    Attributes:
        momentum: the running mean of how the parameters moved in a step.
        before: the parameters of the step before.
    """

    momentum: optax.Updates
    before: optax.Params


def _with_momentum(updates: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The second example in plain NumPy, for a law: incoming updates [T, W, ...] to outgoing ones."""
    x = before = np.repeat(start[None], updates.shape[1], 0)
    momentum, moves = np.zeros_like(x), []
    for update in updates:
        momentum = 0.5 * momentum + 0.5 * (x - before)
        moves.append(update + 0.5 * momentum)
        before, x = x, x + moves[-1]
    return np.stack(moves)


@algorithm(
    paper='Lin et al. 2021, QG-DSGDm, arXiv 2102.04761',
    examples={
        'quasi_global(momentum=0.0)': (laws.sends_nothing(), laws.equals('scale(1.0)')),
        'quasi_global(momentum=0.5)': (laws.matches_reference(_with_momentum),),
        'sgd(0.1) | quasi_global() | gossip()': (laws.alike_equals_one(),),
    },
)
def quasi_global(momentum: float = 0.9, axis: str = collectives.AXIS) -> optax.GradientTransformationExtraArgs:
    """Adds momentum of how this worker's parameters moved in the steps before, mixing included, to its update.

    m <- momentum m + (1 - momentum) (x - x_before), and the update becomes u + momentum m. On data that differ between
    workers local momentum follows local gradients; this one follows where workers go together. It stands between `sgd`
    and `gossip`, and sends nothing. (The paper divides by the learning rate, and multiplies by it again.)

    On another number of workers all start from the means over workers.

    Args:
        momentum: the share of the momentum that is kept, and of it that is added.
        axis: the worker axis.

    Raises:
        InputError: `momentum` is not in [0, 1), or `update` is given no parameters.

    >>> update = quasi_global(momentum=0.5)
    >>> state = update.init(jnp.float32(4.0))
    >>> _, state = update.update(jnp.float32(-1.0), state, jnp.float32(4.0))
    >>> update.update(jnp.float32(-1.0), state, jnp.float32(2.0))[0]  # -1 - 0.5 * 0.5 * 2
    Array(-1.5, dtype=float32)
    """
    if not 0 <= momentum < 1:
        raise InputError(f'quasi_global: momentum={momentum} must be 0 or more, and below 1')

    def init(params: Any) -> QuasiGlobalState:
        copy = collectives.pvary(jax.tree.map(jnp.asarray, params), axis)
        return QuasiGlobalState(jax.tree.map(jnp.zeros_like, copy), copy)

    def update(updates: Any, state: QuasiGlobalState, params: Any = None, **extra: Any) -> tuple[Any, QuasiGlobalState]:
        del extra
        periodic.require_params('quasi_global', params)
        check_local('quasi_global', updates, axis)
        moved = lambda m, before, x: momentum * m + (1 - momentum) * (x - before)  # noqa: E731
        now = jax.tree.map(moved, state.momentum, state.before, params)
        with_momentum = jax.tree.map(lambda u, m: (u + momentum * m).astype(u.dtype), updates, now)
        return with_momentum, QuasiGlobalState(now, collectives.pvary(params, axis))

    return optax.GradientTransformationExtraArgs(init, update)
