"""Where the multipliers of a constraint are: one for each value, one for each example, or a function of features.

A multiplier's *store* is what the dual line moves; what the Lagrangian sees is read from it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.task import Batch


class OfFeatures(NamedTuple):
    """Multipliers of single examples as a function of their features (Narasimhan et al. 2020, arXiv 2006.08667).

    Attributes:
        start: makes the function's own parameters, which all workers share.
        apply: `(parameters, batch) -> [B]`, one multiplier for each example; of inequalities not negative.
    """

    start: Callable[[], Any]
    apply: Callable[[Any, Batch], jax.Array]


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


def read_rows(store: jax.Array, batch: Batch, rows: int) -> jax.Array:
    """The multipliers [B] of a batch's examples, from those of all that the worker owns.

    >>> read_rows(jnp.array([1.0, 2.0, 3.0]), {'row': jnp.array([2, 0])}, rows=3)
    Array([3., 1.], dtype=float32)
    """
    return store[batch['row']] if rows else store


def feed_rows(store: jax.Array, batch: Batch, rows: int, values: jax.Array) -> jax.Array:
    """What each of the worker's multipliers is fed with: the value of its example, 0 if that is not in the batch.

    >>> feed_rows(jnp.zeros(3), {'row': jnp.array([2, 0])}, 3, jnp.array([5.0, 6.0]))
    Array([6., 0., 5.], dtype=float32)
    """
    return jnp.zeros_like(store).at[batch['row']].set(values) if rows else values
