"""Proximal operators: argmin over x of step g(x) + 1/2 |x - v|^2 (Parikh and Boyd 2014, Proximal Algorithms)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import projections

from jaxdist.core.errors import InputError

Prox = Callable[[Any, Any], Any]
"""`(v, step) -> x`, of a function g of what all workers share; v and x are pytrees."""

PartProx = Callable[[Any, Any, Any], Any]
"""`(v, step, part) -> z`, of a function of this worker's block of A x, and of its part of the data."""


def soft_threshold(weight: Any) -> Prox:
    """Of weight |x|_1: what lies within step * weight of 0 becomes 0, the rest comes as much closer.

    Args:
        weight: 0 or more; a number, or an array that goes with every leaf.

    Raises:
        InputError: a weight below 0.

    >>> soft_threshold(1.0)(jnp.array([-3.0, 0.5, 2.0]), 1.0)
    Array([-2.,  0.,  1.], dtype=float32)
    """
    _check_weight('soft_threshold', weight)
    return lambda v, step: jax.tree.map(lambda x: x - jnp.clip(x, -step * weight, step * weight), v)


def group_shrinkage(weight: float, dim: int = -1) -> Prox:
    """Of weight times the sum of groups' 2-norms: every group comes closer to 0 by step * weight, at most to 0.

    Args:
        weight: 0 or more.
        dim: the entries along this dim of a leaf are one group; each scalar is one of its own.

    Raises:
        InputError: a weight below 0.

    >>> group_shrinkage(1.0)(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 2.5)
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
    """Of the set low <= x <= high: the nearest point in it.

    Args:
        low: a number, or a pytree like x.
        high: likewise.

    >>> box(0.0, 1.0)(jnp.array([-1.0, 0.5, 3.0]), 1.0)
    Array([0. , 0.5, 1. ], dtype=float32)
    """

    def nearest(v: Any, step: Any) -> Any:
        del step
        return projections.projection_box(v, _like(v, low), _like(v, high))

    return nearest


def non_negative() -> Prox:
    """Of the set x >= 0: the nearest point in it.

    >>> non_negative()(jnp.array([-1.0, 2.0]), 1.0)
    Array([0., 2.], dtype=float32)
    """
    return lambda v, step: projections.projection_non_negative(v)


def ball(radius: float) -> Prox:
    """Of the set |x|_2 <= radius, all leaves together: the nearest point in it.

    Raises:
        InputError: a radius that is not above 0.

    >>> ball(1.0)(jnp.array([3.0, 4.0]), 1.0)
    Array([0.6, 0.8], dtype=float32)
    """
    if not radius > 0:
        raise InputError(f'ball: radius={radius} must be more than 0')
    return lambda v, step: projections.projection_l2_ball(v, radius)


def squared_error(scale: float = 1.0) -> PartProx:
    """Of scale/2 sum weight (z - y)^2, with `y` and, if it is there, `weight` [B] of this worker's part of the data.

    Args:
        scale: above 0; 1 / n makes of a sum over n examples a mean.

    Raises:
        InputError: a scale that is not above 0.

    >>> squared_error()(jnp.array([0.0, 0.0]), 1.0, {'y': jnp.array([2.0, 4.0])})
    Array([1., 2.], dtype=float32)
    """
    if not scale > 0:
        raise InputError(f'squared_error: scale={scale} must be more than 0')

    def prox(v: Any, step: Any, part: Any) -> Any:
        pull = step * scale * part.get('weight', 1.0)
        return (v + pull * part['y']) / (1 + pull)

    return prox


def _like(v: Any, bound: Any) -> Any:
    """A number as the bound of every leaf; a pytree as it is."""
    return jax.tree.map(lambda x: bound, v) if isinstance(bound, int | float) else bound


def _check_weight(name: str, weight: Any) -> None:
    if bool(jnp.any(jnp.asarray(weight) < 0)):
        raise InputError(f'{name}: weight={weight} must be 0 or more')
