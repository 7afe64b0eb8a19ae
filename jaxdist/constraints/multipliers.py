"""The multipliers of one constraint: their initial values, their lookup in the Lagrangian, and the dual line's input.

By default a constraint has one replicated multiplier for each of its values. A constraint that must hold on every
worker has one per worker. Constraints on single examples have one per example, stored by the worker that owns the
example, or a replicated function of the examples' features.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint, Sums
from jaxdist.core import collectives
from jaxdist.core.gradient import inverse
from jaxdist.core.types import Batch, Params

Stored = Any
"""What the dual line moves of one constraint: an array, or the parameters of a function of features."""

Multipliers = dict[str, Stored]
"""The multipliers of all constraints, by name."""


def init(constraint: Constraint, params: Params, batch: Batch) -> Stored:
    """The multipliers before the first step: 0, or the initial parameters of a function of features.

    Args:
        constraint: the constraint.
        params: the parameters, or their shapes.
        batch: this worker's part of the batch, or its shapes.

    >>> import numpy as np
    >>> from jaxdist.constraints.constraint import inequality
    >>> init(inequality('each', lambda p, b: b['x'], over='example', rows=3), {}, {'x': np.ones(2)})
    Array([0., 0., 0.], dtype=float32)
    """
    if constraint.multiplier is not None:
        return constraint.multiplier.init()
    value = jax.eval_shape(lambda p, b: constraint.value(constraint.sums(p, b)), params, batch)
    return jnp.zeros((constraint.rows,) if constraint.rows else value.shape, value.dtype)


def lookup(constraint: Constraint, stored: Stored, batch: Batch) -> jax.Array:
    """The multipliers in the shape of the constraint's value; for single examples, those of the batch's examples [B].

    >>> import numpy as np
    >>> from jaxdist.constraints.constraint import inequality
    >>> each = inequality('each', lambda p, b: b['x'], over='example', rows=3)
    >>> lookup(each, jnp.array([1.0, 2.0, 3.0]), {'row': np.array([2, 0])})
    Array([3., 1.], dtype=float32)
    """
    if constraint.multiplier is not None:
        return constraint.multiplier.apply(stored, batch)
    # JAX clamps an index that is out of range to another example's multiplier; NaN makes the guard reject the step.
    return stored.at[batch['row']].get(mode='fill', fill_value=jnp.nan) if constraint.rows else jnp.asarray(stored)


def dual_input(
    constraint: Constraint, stored: Stored, sums: Sums, examples: jax.Array, batch: Batch, axis: str
) -> tuple[Stored, jax.Array | Literal[True]]:
    """The violations that the dual line is fed with, in the shape of `stored`, and the mask of multipliers that move.

    The mask is True for all, or a bool for each multiplier: for single examples, only those that are in the batch with
    a nonzero weight move. A function of features is fed with the derivative of the Lagrangian by its parameters, summed
    over workers.

    Args:
        constraint: the constraint.
        stored: the multipliers.
        sums: the reduced sums of the true measure.
        examples: the total weight of the examples of all workers.
        batch: this worker's part of the batch.
        axis: the worker axis.

    >>> import numpy as np
    >>> from jaxdist.constraints.constraint import inequality
    >>> each = inequality('each', lambda p, b: b['x'], over='example', rows=3)
    >>> sums = jnp.array([5.0, 6.0]), np.ones(2)
    >>> dual_input(each, jnp.zeros(3), sums, np.float32(2), {'row': np.array([2, 0])}, 'workers')
    (Array([6., 0., 5.], dtype=float32), Array([ True, False, True], dtype=bool))
    """
    value, model = constraint.value(sums), constraint.multiplier
    if constraint.over != 'example':
        return value, True
    if model is None:
        counts = constraint.known(sums)
        if not constraint.rows:
            return value, counts
        zeros, rows = jnp.zeros_like(stored), batch['row']
        return zeros.at[rows].set(value), zeros.astype(bool).at[rows].set(counts)
    _, pull = jax.vjp(lambda own: model.apply(own, batch), collectives.pvary(stored, axis))
    cotangent = value * sums[1] * inverse(examples)  # of the multipliers: the Lagrangian has the mean over examples
    return collectives.psum(pull(collectives.pvary(cotangent, axis))[0], axis), True
