"""Multipliers of single examples as a learned function of their features (Narasimhan et al. 2020, arXiv 2006.08667)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core.types import Batch, Params


class FeatureMultipliers(NamedTuple):
    """One multiplier per example, computed from its features by a function with parameters; the dual line moves these.

    Attributes:
        init: returns the function's initial parameters, which are replicated.
        apply: `(parameters, batch) -> [B]`, one multiplier per example.
        signed: whether a multiplier can be negative, as it must for equalities and must not for inequalities.
    """

    init: Callable[[], Params]
    apply: Callable[[Params, Batch], jax.Array]
    signed: bool = False


def linear(features: Callable[[Batch], jax.Array], size: int) -> FeatureMultipliers:
    """A softplus of a linear function of features, for inequalities; initially log 2 for every example.

    Args:
        features: `batch -> [B, size]`.
        size: the number of features.

    >>> import numpy as np
    >>> multipliers = linear(lambda batch: batch['x'], 2)
    >>> multipliers.apply(multipliers.init(), {'x': np.ones((3, 2), np.float32)})
    Array([0.6931472, 0.6931472, 0.6931472], dtype=float32)
    """
    return FeatureMultipliers(
        lambda: {'weight': jnp.zeros(size), 'bias': jnp.zeros(())},
        lambda own, batch: jax.nn.softplus(features(batch) @ own['weight'] + own['bias']),
    )
