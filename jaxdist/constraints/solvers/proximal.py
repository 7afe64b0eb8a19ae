"""Proximal operators: argmin over x of step g(x) + 1/2 |x - v|^2 (Parikh and Boyd 2014, Proximal Algorithms).

Each function returns the operator of the function or set that its first line names.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import projections

from jaxdist.constraints.solvers.iteration import Data
from jaxdist.core.errors import InputError
from jaxdist.core.types import Params

Prox = Callable[[Params, Any], Params]
"""`(v, step) -> x`, of a function g of replicated variables; v and x are pytrees."""

PartProx = Callable[[Any, Any, Data], Any]
"""`(v, step, part) -> z`, of a function g of this worker's block of A x and its part of the data."""


def soft_threshold(weight: jax.typing.ArrayLike) -> Prox:
    """For g = weight |x|_1: entries within step * weight of 0 become 0, the others move towards 0 by as much.

    Args:
        weight: 0 or more; a number, or an array that broadcasts against every leaf.

    Raises:
        InputError: a weight below 0.

    >>> import numpy as np
    >>> soft_threshold(1.0)(np.array([-3.0, 0.5, 2.0]), 1.0)
    Array([-2.,  0.,  1.], dtype=float32)
    """
    _check_weight('soft_threshold', weight)
    return lambda v, step: jax.tree.map(lambda x: x - jnp.clip(x, -step * weight, step * weight), v)


def group_shrinkage(weight: float, dim: int = -1) -> Prox:
    """For g = weight times the sum of the groups' 2-norms: each group's norm shrinks by step * weight, at most to 0.

    Args:
        weight: 0 or more.
        dim: the dim of a leaf along which the entries of a group lie; a scalar leaf is a group by itself.

    Raises:
        InputError: a weight below 0.

    >>> import numpy as np
    >>> group_shrinkage(1.0)(np.array([[3.0, 4.0], [0.3, 0.4]], np.float32), 2.5)
    Array([[1.5, 2. ],
           [0. , 0. ]], dtype=float32)
    """
    _check_weight('group_shrinkage', weight)

    def shrink(x: jax.Array, step: Any) -> jax.Array:
        size = jnp.linalg.norm(x, axis=dim, keepdims=True) if x.ndim else jnp.abs(x)
        # Divided by a size of 0, a group of zeros would become NaN.
        return x * jax.nn.relu(1 - step * weight / jnp.where(size > 0, size, 1))

    return lambda v, step: jax.tree.map(lambda x: shrink(x, step), v)


def box(low: Any = -math.inf, high: Any = math.inf) -> Prox:
    """The projection onto the set low <= x <= high.

    Args:
        low: the lower bound, a number or a pytree like x.
        high: the upper bound, likewise.

    >>> import numpy as np
    >>> box(0.0, 1.0)(np.array([-1.0, 0.5, 3.0]), 1.0)
    Array([0. , 0.5, 1. ], dtype=float32)
    """

    def project(v: Params, step: Any) -> Params:
        del step
        return projections.projection_box(v, _like(v, low), _like(v, high))

    return project


def non_negative() -> Prox:
    """The projection onto the set x >= 0.

    >>> import numpy as np
    >>> non_negative()(np.array([-1.0, 2.0]), 1.0)
    Array([0., 2.], dtype=float32)
    """
    return lambda v, step: projections.projection_non_negative(v)


def ball(radius: float) -> Prox:
    """The projection onto the set |x|_2 <= radius; the norm is over all leaves together.

    Args:
        radius: above 0.

    Raises:
        InputError: a radius that is not above 0.

    >>> import numpy as np
    >>> ball(1.0)(np.array([3.0, 4.0]), 1.0)
    Array([0.6, 0.8], dtype=float32)
    """
    if not radius > 0:
        raise InputError(f'ball: radius={radius} must be more than 0')
    return lambda v, step: projections.projection_l2_ball(v, radius)


def squared_error(scale: float = 1.0) -> PartProx:
    """For g = scale/2 sum weight (z - y)^2, with `y` and the optional `weight` [B] of this worker's part of the data.

    Args:
        scale: above 0; 1 / n turns a sum over n examples into a mean.

    Raises:
        InputError: a scale that is not above 0.

    >>> import numpy as np
    >>> squared_error()(np.array([0.0, 0.0]), 1.0, {'y': np.array([2.0, 4.0])})
    array([1., 2.])
    """
    if not scale > 0:
        raise InputError(f'squared_error: scale={scale} must be more than 0')

    def prox(v: jax.Array, step: Any, part: Data) -> jax.Array:
        scaled = step * scale * part.get('weight', 1.0)
        return (v + scaled * part['y']) / (1 + scaled)

    return prox


def _like(v: Any, bound: Any) -> Any:
    """A number broadcast to every leaf of `v`; a pytree unchanged."""
    return jax.tree.map(lambda x: bound, v) if isinstance(bound, int | float) else bound


def _check_weight(name: str, weight: Any) -> None:
    if bool(jnp.any(jnp.asarray(weight) < 0)):
        raise InputError(f'{name}: weight={weight} must be 0 or more')
