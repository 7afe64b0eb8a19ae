"""The Lagrangian, augmented or not, and the quadratic penalty, as pure functions. All sign conventions are here.

L = f + sum l g + sum m h: inequalities g <= 0 have multipliers l >= 0, equalities h = 0 have multipliers m of any sign.
The augmented Lagrangian is that of Powell (1969), Hestenes (1969) and, for inequalities, Rockafellar (1973).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Kind

Scalar = jax.typing.ArrayLike


class Term(NamedTuple):
    """The term of one constraint in a Lagrangian.

    Attributes:
        kind: `inequality` or `equality`.
        value: g or h, of any shape.
        multiplier: l or m, in the same shape.
    """

    kind: Kind
    value: Any
    multiplier: Any


def effective_multiplier(term: Term, penalty: Scalar = 0.0) -> jax.Array:
    """The derivative of the augmented Lagrangian by the value: m + c h for equalities, relu(l + c g) for inequalities.

    >>> import numpy as np
    >>> effective_multiplier(Term('inequality', np.array([1.0, -1.0]), np.array([0.5, 0.5])), penalty=2.0)
    Array([2.5, 0. ], dtype=float32)
    """
    shifted = term.multiplier + penalty * term.value
    return shifted if term.kind == 'equality' else jax.nn.relu(shifted)


def augmented_lagrangian(objective: Scalar, terms: Iterable[Term], penalty: Scalar) -> jax.Array:
    """Returns f + m h + c/2 h^2 for equalities, and + (relu(l + c g)^2 - l^2) / (2 c) for inequalities; at c = 0, l g.

    Args:
        objective: f.
        terms: the constraints' values and multipliers.
        penalty: c, 0 or more.

    >>> import numpy as np
    >>> augmented_lagrangian(1.0, [Term('inequality', np.array([1.0, -9.0]), np.array([0.5, 0.5]))], penalty=2.0)
    Array(2.4375, dtype=float32)
    >>> float(augmented_lagrangian(1.0, [Term('inequality', 1.0, 0.5)], penalty=0.0))
    1.5
    """
    total = jnp.asarray(objective)
    for term in terms:
        total = total + jnp.sum(_augmented(term, penalty))
    return total


def lagrangian(objective: Scalar, terms: Iterable[Term]) -> jax.Array:
    """Returns f + l g + m h: the augmented Lagrangian of penalty 0.

    >>> lagrangian(1.0, [Term('equality', 3.0, -2.0)])
    Array(-5., dtype=float32)
    """
    return augmented_lagrangian(objective, terms, 0.0)


def quadratic_penalty(objective: Scalar, terms: Iterable[Term], penalty: Scalar) -> jax.Array:
    """Returns f + c/2 relu(g)^2 + c/2 h^2, whatever the multipliers: the augmented Lagrangian of multipliers 0.

    >>> import numpy as np
    >>> quadratic_penalty(1.0, [Term('inequality', np.array([3.0, -3.0]), 7.0)], penalty=2.0)
    Array(10., dtype=float32)
    """
    return augmented_lagrangian(objective, [term._replace(multiplier=0.0) for term in terms], penalty)


def violation(term: Term) -> jax.Array:
    """The violation: relu(g) for inequalities, |h| for equalities.

    >>> import numpy as np
    >>> violation(Term('inequality', np.array([3.0, -3.0]), 0.0))
    Array([3., 0.], dtype=float32)
    """
    return jnp.abs(term.value) if term.kind == 'equality' else jax.nn.relu(jnp.asarray(term.value))


def _augmented(term: Term, penalty: Scalar) -> jax.Array:
    value, multiplier = jnp.asarray(term.value), jnp.asarray(term.multiplier)
    active = multiplier * value + 0.5 * penalty * value**2
    if term.kind == 'equality':
        return active
    # Divided by a penalty of 0, the branch that is not taken would still make a gradient of NaN.
    inactive = -0.5 * multiplier**2 / jnp.where(jnp.asarray(penalty) > 0, penalty, 1.0)
    return jnp.where((multiplier + penalty * value > 0) | (jnp.asarray(penalty) <= 0), active, inactive)
