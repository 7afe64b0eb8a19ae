"""Multipliers of single examples as a function of their features (Narasimhan et al. 2020, arXiv 2006.08667)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core.types import Batch


class OfFeatures(NamedTuple):
    """One multiplier for each example, made of its features by a function that learns.

    Attributes:
        start: makes the function's own parameters, which all workers share.
        apply: `(parameters, batch) -> [B]`, one multiplier for each example.
        signed: whether it can be negative, which those of equalities must and those of inequalities must not.
    """

    start: Callable[[], Any]
    apply: Callable[[Any, Batch], jax.Array]
    signed: bool = False


def linear(features: Callable[[Batch], jax.Array], size: int) -> OfFeatures:
    """A softplus of a linear function of features, for inequalities; it starts at log 2 for every example.

    Args:
        features: `batch -> [B, size]`.
        size: how many features there are.

    >>> of = linear(lambda batch: batch['x'], 2)
    >>> of.apply(of.start(), {'x': jnp.ones((3, 2))})
    Array([0.6931472, 0.6931472, 0.6931472], dtype=float32)
    """
    return OfFeatures(
        lambda: {'weight': jnp.zeros(size), 'bias': jnp.zeros(())},
        lambda own, batch: jax.nn.softplus(features(batch) @ own['weight'] + own['bias']),
    )
