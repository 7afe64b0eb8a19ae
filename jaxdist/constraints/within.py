"""Multipliers kept within a box and a ball of the 1-norm (TFCO's radius; Cotter et al. 2019, arXiv 1809.04198)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import projections

from jaxdist.registry import dual


@dual(
    paper='Duchi et al. 2008, Efficient projections onto the l1-ball',
    examples={'sgd(0.01) | within(radius=10.0)': ()},
    settles=True,
)
def within(most: float = math.inf, radius: float = math.inf) -> optax.GradientTransformationExtraArgs:
    """Projects multipliers, as moved so far, onto a box and then onto a ball; it comes last in a dual line.

    Without a bound multipliers of contradictory constraints grow without end. With a radius R the constraints are
    those of a player who may spend R on them all: their worst violations are about (f range) / R at the end.

    Args:
        most: no multiplier exceeds it; those of equalities lie between -most and most.
        radius: the most that the 1-norm of all multipliers together may be.

    Raises:
        ValueError: a bound that is not above 0, or no bound.

    >>> chain = optax.chain(optax.sgd(1.0), within(radius=3.0))
    >>> at = {'a': jnp.zeros(2)}
    >>> chain.update({'a': jnp.array([-4.0, -1.0])}, chain.init(at), at)[0]
    {'a': Array([3., 0.], dtype=float32)}
    """
    if not (most > 0 and radius > 0):
        raise ValueError(f'within(most={most}, radius={radius}) needs bounds above 0')
    if math.isinf(most) and math.isinf(radius):
        raise ValueError('within() needs a bound: most=..., of each multiplier, or radius=..., of all together')

    def update(updates: Any, state: Any, params: Any = None, *, least: Any = None, **_: Any) -> tuple[Any, Any]:
        lower = jax.tree.map(lambda p: jnp.zeros_like(p), params) if least is None else least
        moved = jax.tree.map(lambda p, u, low: jnp.clip(p + u, jnp.maximum(low, -most), most), params, updates, lower)
        if math.isfinite(radius):
            # Not projection_l1_ball, whose cond wants multipliers that are all of one type: shared, or each worker's.
            near, inside = projections.projection_l1_sphere(moved, radius), optax.tree.norm(moved, ord=1) <= radius
            moved = jax.tree.map(lambda m, n: jnp.where(inside, m, n), moved, near)
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
