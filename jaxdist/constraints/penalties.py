"""The penalty of an augmented Lagrangian: a number, a schedule, or one that grows while violations do not shrink."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.registry import dual


class Growing(NamedTuple):
    """The settings of a growing penalty; see `growing`."""

    start: float
    factor: float
    shrink: float
    most: float


class GrowingState(NamedTuple):
    """The state of a growing penalty; replicated.

    Attributes:
        penalty: the present penalty.
        violation: the largest violation at the last dual step; infinity before the first.
    """

    penalty: jax.Array
    violation: jax.Array


Penalty = float | Callable[[jax.Array], Any] | Growing
"""A number, an optax schedule of the dual steps taken, or `growing(...)`."""

PenaltyState = GrowingState | tuple[()]
"""The state of a penalty; () for a number or a schedule."""


@dual(
    paper='Bertsekas 1982, Constrained Optimization and Lagrange Multiplier Methods, section 2.2',
    examples={'growing(start=1.0, factor=2.0)': ()},
)
def growing(start: float, factor: float = 2.0, shrink: float = 0.9, most: float = 1e4) -> Growing:
    """A penalty that grows when the largest violation has not shrunk enough since the last dual step.

    Gradient descent with a fixed learning rate is unstable under a large enough penalty: choose `most` by the learning
    rate, or take many primal steps per dual step, so that violations have time to shrink.

    Args:
        start: the initial penalty, above 0.
        factor: the growth factor, above 1.
        shrink: the penalty grows unless the largest violation is at most this fraction of the last one.
        most: the upper limit of the penalty.

    Raises:
        InputError: a number out of range.

    >>> growing(1.0, factor=10.0).most
    10000.0
    """
    if not (0 < start <= most and factor > 1 and 0 < shrink <= 1):
        raise InputError(
            f'growing(start={start}, factor={factor}, shrink={shrink}, most={most}) needs 0 < start <= most, '
            'factor above 1 and 0 < shrink <= 1'
        )
    return Growing(start, factor, shrink, most)


def init(penalty: Penalty) -> PenaltyState:
    """The state before the first dual step.

    Raises:
        InputError: a number below 0.
        TypeError: text; `jaxdist.line.build_value` reads it.

    >>> init(1.0), float(init(growing(2.0)).penalty)
    ((), 2.0)
    """
    if isinstance(penalty, Growing):
        return GrowingState(jnp.asarray(penalty.start, float), jnp.asarray(jnp.inf, float))
    if isinstance(penalty, str):
        raise TypeError(
            f'penalty={penalty!r} must be a number, a schedule or growing(...); jaxdist.line.build_value reads text'
        )
    if not callable(penalty) and not penalty >= 0:
        raise InputError(f'penalty={penalty} must be 0 or more')
    return ()


def current(penalty: Penalty, state: Any, steps: jax.Array) -> jax.Array:
    """The penalty after `steps` dual steps, a scalar.

    >>> import numpy as np
    >>> float(current(lambda step: 2.0 * step, (), np.int32(3)))
    6.0
    """
    if isinstance(penalty, Growing):
        return state.penalty
    return jnp.asarray(penalty(steps) if callable(penalty) else penalty, float)


def grow(penalty: Penalty, state: Any, worst: jax.Array) -> Any:
    """The state after a dual step whose largest violation was `worst`.

    >>> import numpy as np
    >>> float(grow(growing(1.0), GrowingState(np.float32(1.0), np.float32(1.0)), np.float32(0.95)).penalty)
    2.0
    """
    if not isinstance(penalty, Growing):
        return state
    grown = jnp.minimum(state.penalty * penalty.factor, penalty.most)
    return GrowingState(jnp.where(worst > penalty.shrink * state.violation, grown, state.penalty), worst.astype(float))
