"""What is wrong with constraints that cannot be had, said before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.constraint import Constraint
from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch


def check_examples(constraint: Constraint, batch: Batch, accumulate: int) -> None:
    """Says why multipliers of single examples cannot follow the examples of this batch.

    Raises:
        InputError: the batch is taken in parts, or it does not say which of its worker's examples its rows are.

    >>> from jaxdist.constraints.constraint import inequality
    >>> each = inequality('each', lambda params, batch: batch['x'], over='example', rows=10)
    >>> check_examples(each, {'x': jnp.ones(4)}, accumulate=1)
    Traceback (most recent call last):
    jaxdist.InputError: 'each' has a multiplier for each of rows=10 examples of a worker, and the batch has no `row` [B] that
    says which they are. Data sets give it where each worker draws from its own part, as under Sizes or Dirichlet;
    rows=0 is for a batch that is the same at every step
    """
    if constraint.over != 'example':
        return
    if accumulate > 1:
        raise InputError(f"{constraint.name!r}: over='example' needs a batch taken whole, not accumulate={accumulate}")
    if constraint.rows and 'row' not in batch:
        raise InputError(
            f'{constraint.name!r} has a multiplier for each of rows={constraint.rows} examples of a worker, and the '
            'batch has no `row` [B] that says which they are. Data sets give it where each worker draws from its own '
            'part, as under Sizes or Dirichlet; rows=0 is for a batch that is the same at every step'
        )


def check_replicated(constraints: Sequence[Constraint], layout: Any) -> None:
    """Says so if workers would not agree on a multiplier that all share.

    Args:
        constraints: whose multipliers they are.
        layout: by name, which of the multipliers differ between workers, as bools.

    Raises:
        InputError: they would not.

    >>> from jaxdist.constraints.constraint import inequality
    >>> check_replicated([inequality('ball', lambda w: w @ w)], {'ball': False})
    """
    for constraint in constraints:
        if constraint.shares and any(jax.tree.leaves(layout[constraint.name])):
            raise InputError(
                f'the multiplier of {constraint.name!r}, which all share, would come out different on each worker: a '
                'link of the dual line, as within(radius=...), mixes it with multipliers of which each has its own'
            )


def check_ascends(dual: optax.GradientTransformation, multipliers: dict[str, Any], penalty: Any) -> None:
    """Says so if a dual line would lower the multipliers of violated constraints.

    Args:
        dual: the dual line's transformation.
        multipliers: shapes.
        penalty: what it is told of it.

    Raises:
        InputError: its first step, with every value at 1 above its bound, lowers one.

    >>> check_ascends(optax.scale(0.1), {'ball': jax.ShapeDtypeStruct((), 'float32')}, 0.0)
    Traceback (most recent call last):
    jaxdist.InputError: the dual line lowers the multiplier of 'ball' when that is violated by 1. It is an ordinary optimiser
    and is fed with minus the violations: sgd(0.1) ascends, and scale(0.1) alone does not; put scale(-1.0) after it
    """
    at = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), multipliers)
    ones = jax.tree.map(jnp.ones_like, at)
    extended = optax.with_extra_args_support(dual)
    told = {'violations': ones, 'least': at, 'penalty': penalty}
    moves, _ = extended.update(jax.tree.map(jnp.negative, ones), extended.init(at), at, **told)
    for name, move in moves.items():
        if any(bool(jnp.any(x < 0)) for x in jax.tree.leaves(move)):
            raise InputError(
                f'the dual line lowers the multiplier of {name!r} when that is violated by 1. It is an ordinary '
                'optimiser and is fed with minus the violations: sgd(0.1) ascends, and scale(0.1) alone does not; '
                'put scale(-1.0) after it'
            )
