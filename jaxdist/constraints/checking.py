"""Checks of constraints and dual lines, before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints.constraint import Constraint
from jaxdist.constraints.multipliers import Multipliers
from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch


def check_examples(constraint: Constraint, batch: Batch, accumulate: int) -> None:
    """Checks that multipliers of single examples can be matched with the examples of a batch.

    Args:
        constraint: the constraint.
        batch: the batch, or its shapes.
        accumulate: the number of parts in which each worker's batch is processed.

    Raises:
        InputError: the batch is processed in parts, or lacks the numbers of its examples (`row`).

    >>> import numpy as np
    >>> from jaxdist.constraints.constraint import inequality
    >>> each = inequality('each', lambda params, batch: batch['x'], over='example', rows=10)
    >>> check_examples(each, {'x': np.ones(4)}, accumulate=1)
    Traceback (most recent call last):
    jaxdist.InputError: 'each' has a multiplier for each of rows=10 examples of a worker, and the batch has no `row`
    [B], the examples' numbers. Data sets provide it where each worker draws from its own part, as under Sizes or
    Dirichlet; rows=0 is for a batch that is the same at every step
    """
    if constraint.over != 'example':
        return
    if accumulate > 1:
        raise InputError(
            f"{constraint.name!r}: over='example' needs a batch that each worker processes whole, "
            f'and not in {accumulate} parts, by accumulate or on as many devices of fsdp'
        )
    if constraint.rows and 'row' not in batch:
        raise InputError(
            f'{constraint.name!r} has a multiplier for each of rows={constraint.rows} examples of a worker, and the '
            "batch has no `row` [B], the examples' numbers. Data sets provide it where each worker draws from its own "
            'part, as under Sizes or Dirichlet; rows=0 is for a batch that is the same at every step'
        )


def check_replicated(constraints: Sequence[Constraint], layout: Any) -> None:
    """Checks that the multipliers that must be replicated are.

    Args:
        constraints: the constraints.
        layout: by constraint name, which of its multipliers vary over workers, as bools.

    Raises:
        InputError: a multiplier that must be replicated would vary over workers.

    >>> from jaxdist.constraints.constraint import inequality
    >>> check_replicated([inequality('ball', lambda w: w @ w)], {'ball': False})
    """
    for constraint in constraints:
        if constraint.replicated and any(jax.tree.leaves(layout[constraint.name])):
            raise InputError(
                f'the multiplier of {constraint.name!r} must be replicated, and would vary over workers: a '
                'transformation of the dual line, such as within(radius=...), mixes it with per-worker multipliers'
            )


def check_ascends(dual: optax.GradientTransformation, multipliers: Multipliers, penalty: jax.typing.ArrayLike) -> None:
    """Checks that the first step of a dual line lowers no multiplier of a violated constraint.

    Args:
        dual: the dual line.
        multipliers: the multipliers' shapes.
        penalty: the initial penalty of the augmented Lagrangian.

    Raises:
        InputError: the first step, with every value 1 above its bound, lowers a multiplier.

    >>> check_ascends(optax.scale(0.1), {'ball': jax.ShapeDtypeStruct((), 'float32')}, 0.0)
    Traceback (most recent call last):
    jaxdist.InputError: the dual line lowers the multiplier of 'ball' when that is violated by 1. It is an ordinary
    optimiser and is fed with minus the violations: sgd(0.1) ascends, and scale(0.1) alone does not; put scale(-1.0)
    after it
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), multipliers)
    ones = jax.tree.map(jnp.ones_like, zeros)
    extended = optax.with_extra_args_support(dual)
    extra = {'violations': ones, 'least': zeros, 'penalty': penalty}
    moves, _ = extended.update(jax.tree.map(jnp.negative, ones), extended.init(zeros), zeros, **extra)
    for name, move in moves.items():
        if any(bool(jnp.any(x < 0)) for x in jax.tree.leaves(move)):
            raise InputError(
                f'the dual line lowers the multiplier of {name!r} when that is violated by 1. It is an ordinary '
                'optimiser and is fed with minus the violations: sgd(0.1) ascends, and scale(0.1) alone does not; '
                'put scale(-1.0) after it'
            )
