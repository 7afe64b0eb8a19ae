"""The penalty of an augmented Lagrangian: a number, a schedule, or one that grows while violations do not shrink."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.registry import dual


class Growing(NamedTuple):
    """A penalty that grows; see `growing`."""

    start: float
    factor: float
    shrink: float
    most: float


class Grown(NamedTuple):
    """How far a growing penalty has come.

    Attributes:
        penalty: as it is now.
        before: the largest violation at the last dual step; infinity before the first.
    """

    penalty: jax.Array
    before: jax.Array


Penalty = float | Callable[[jax.Array], Any] | Growing


@dual(
    paper='Bertsekas 1982, Constrained Optimization and Lagrange Multiplier Methods, section 2.2',
    examples={'growing(start=1.0, factor=2.0)': ()},
)
def growing(start: float, factor: float = 2.0, shrink: float = 0.9, most: float = 1e4) -> Growing:
    """A penalty that grows when a dual step finds violations that have not shrunk enough since the one before.

    Descent of a fixed rate is not stable under any penalty: choose `most` by the rate, or take many primal steps to a
    dual step, so that violations have had the time to shrink.

    Args:
        start: the first penalty, above 0.
        factor: what it is multiplied with, above 1.
        shrink: it grows unless the largest violation is at most this part of the one before.
        most: it never exceeds this.

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


def begin(penalty: Penalty) -> Any:
    """What a penalty remembers, before the first dual step.

    Raises:
        InputError: a number below 0.

    >>> begin(1.0), float(begin(growing(2.0)).penalty)
    ((), 2.0)
    """
    if isinstance(penalty, Growing):
        return Grown(jnp.asarray(penalty.start, float), jnp.asarray(jnp.inf, float))
    if isinstance(penalty, str):
        raise TypeError(
            f'penalty={penalty!r} must be a number, a schedule or growing(...); jaxdist.line.build_value reads text'
        )
    if not callable(penalty) and not penalty >= 0:
        raise InputError(f'penalty={penalty} must be 0 or more')
    return ()


def current(penalty: Penalty, state: Any, steps: jax.Array) -> jax.Array:
    """The penalty after so many dual steps.

    >>> float(current(lambda step: 2.0 * step, (), jnp.int32(3)))
    6.0
    """
    if isinstance(penalty, Growing):
        return state.penalty
    return jnp.asarray(penalty(steps) if callable(penalty) else penalty, float)


def grow(penalty: Penalty, state: Any, worst: jax.Array) -> Any:
    """What a penalty remembers after a dual step that found this largest violation.

    >>> float(grow(growing(1.0), Grown(jnp.ones(()), jnp.ones(())), jnp.float32(0.95)).penalty)
    2.0
    """
    if not isinstance(penalty, Growing):
        return state
    more = jnp.minimum(state.penalty * penalty.factor, penalty.most)
    return Grown(jnp.where(worst > penalty.shrink * state.before, more, state.penalty), worst.astype(float))
