"""Where the multipliers of a constraint are: what the dual line moves, and what the Lagrangian sees of it.

Most have one for each value, which all workers share. What every worker holds by itself has one on each worker; single
examples have one each, with the worker that owns them, or a function of their features.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint, Sums
from jaxdist.core import collectives
from jaxdist.core.gradient import inverse
from jaxdist.core.types import Batch, Params


def start(constraint: Constraint, params: Params, batch: Batch) -> Any:
    """The multipliers before the first step: 0, or what a function of features starts from.

    Args:
        constraint: whose.
        params: the parameters, or shapes.
        batch: this worker's part, or shapes.

    >>> from jaxdist.constraints.constraint import inequality
    >>> start(inequality('each', lambda p, b: b['x'], over='example', rows=3), {}, {'x': jnp.ones(2)})
    Array([0., 0., 0.], dtype=float32)
    """
    if constraint.multiplier is not None:
        return constraint.multiplier.start()
    value = jax.eval_shape(lambda p, b: constraint.value(constraint.sums(p, b)), params, batch)
    return jnp.zeros((constraint.rows,) if constraint.rows else value.shape, value.dtype)


def read(constraint: Constraint, store: Any, batch: Batch) -> jax.Array:
    """The multipliers of a constraint's values; of single examples, of those in the batch [B].

    >>> from jaxdist.constraints.constraint import inequality
    >>> each = inequality('each', lambda p, b: b['x'], over='example', rows=3)
    >>> read(each, jnp.array([1.0, 2.0, 3.0]), {'row': jnp.array([2, 0])})
    Array([3., 1.], dtype=float32)
    """
    if constraint.multiplier is not None:
        return constraint.multiplier.apply(store, batch)
    # A row that the store has no place for would get another one's multiplier: NaN has the step left out instead.
    return store.at[batch['row']].get(mode='fill', fill_value=jnp.nan) if constraint.rows else jnp.asarray(store)


def feed(
    constraint: Constraint, store: Any, sums: Sums, examples: jax.Array, batch: Batch, axis: str
) -> tuple[Any, Any]:
    """What multipliers are fed with, the violations, and which of them are to move: True, or a bool for each.

    Of single examples, those that are in the batch, and count there. A function of features is fed with the derivative
    of the Lagrangian by its own parameters, summed over workers.

    Args:
        constraint: whose.
        store: the multipliers.
        sums: what workers have agreed on, of the true measure.
        examples: how much the examples of all workers count together.
        batch: this worker's part.
        axis: the worker axis.

    >>> from jaxdist.constraints.constraint import inequality
    >>> each = inequality('each', lambda p, b: b['x'], over='example', rows=3)
    >>> sums = jnp.array([5.0, 6.0]), jnp.ones(2)
    >>> feed(each, jnp.zeros(3), sums, jnp.float32(2), {'row': jnp.array([2, 0])}, 'workers')
    (Array([6., 0., 5.], dtype=float32), Array([ True, False, True], dtype=bool))
    """
    value, model = constraint.value(sums), constraint.multiplier
    if constraint.over != 'example':
        return value, True
    if model is None:
        counts = constraint.known(sums)
        if not constraint.rows:
            return value, counts
        none, rows = jnp.zeros_like(store), batch['row']
        return none.at[rows].set(value), none.astype(bool).at[rows].set(counts)
    _, pull = jax.vjp(lambda own: model.apply(own, batch), collectives.pvary(store, axis))
    share = value * sums[1] * inverse(examples)
    return collectives.psum(pull(collectives.pvary(share, axis))[0], axis), True
