"""Quasi-global momentum: momentum of how the mixed parameters move, not of local gradients (Lin et al. 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
        momentum: the running mean of how the parameters moved, over the learning rate.
        before: the parameters of the step before.
    """

    momentum: optax.Updates
    before: optax.Params


@algorithm(
    paper='Lin et al. 2021, QG-DSGDm, arXiv 2102.04761',
    examples={
        'quasi_global(learning_rate=0.1, momentum=0.0)': (laws.sends_nothing(), laws.equals('scale(1.0)')),
        'quasi_global(learning_rate=0.1, momentum=0.9) | sgd(0.1) | gossip()': (laws.alike_equals_one(),),
    },
)
def quasi_global(
    learning_rate: float, momentum: float = 0.9, axis: str = collectives.AXIS
) -> optax.GradientTransformationExtraArgs:
    """Adds momentum of how this worker's parameters moved in the steps before, mixing included, to its gradient.

    m <- momentum m + (1 - momentum) (x_before - x) / learning_rate, and the gradient becomes g + momentum m. On data
    that differ between workers local momentum follows local gradients; this one follows where the workers go together.
    It stands first in the line, `quasi_global(learning_rate=0.1) | sgd(0.1) | gossip()`, and sends nothing.

    On another number of workers all start from the means over workers.

    Args:
        learning_rate: that of the optimiser that follows.
        momentum: the share of the momentum that is kept, and of it that is added.
        axis: the worker axis.

    Raises:
        InputError: `learning_rate` is not above 0, `momentum` is not in [0, 1), or `update` is given no parameters.

    >>> update = quasi_global(learning_rate=1.0, momentum=0.5)
    >>> state = update.init(jnp.float32(4.0))
    >>> _, state = update.update(jnp.float32(1.0), state, jnp.float32(4.0))
    >>> update.update(jnp.float32(1.0), state, jnp.float32(2.0))[0]  # 1 + 0.5 * 0.5 * 2
    Array(1.5, dtype=float32)
    """
    if not learning_rate > 0:
        raise InputError(f'quasi_global: learning_rate={learning_rate} must be above 0')
    if not 0 <= momentum < 1:
        raise InputError(f'quasi_global: momentum={momentum} must be 0 or more, and below 1')

    def init(params: Any) -> QuasiGlobalState:
        copy = collectives.pvary(jax.tree.map(jnp.asarray, params), axis)
        return QuasiGlobalState(jax.tree.map(jnp.zeros_like, copy), copy)

    def update(updates: Any, state: QuasiGlobalState, params: Any = None, **extra: Any) -> tuple[Any, QuasiGlobalState]:
        del extra
        periodic.require_params('quasi_global', params)
        check_local('quasi_global', updates, axis)
        moved = lambda m, before, x: momentum * m + (1 - momentum) / learning_rate * (before - x)  # noqa: E731
        now = jax.tree.map(moved, state.momentum, state.before, params)
        with_momentum = jax.tree.map(lambda g, m: (g + momentum * m).astype(g.dtype), updates, now)
        return with_momentum, QuasiGlobalState(now, collectives.pvary(params, axis))

    return optax.GradientTransformationExtraArgs(init, update)
