"""Transformations of a dual line, beside those of optax: controllers, restarts, projections."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import projections

from jaxdist.core.errors import InputError
from jaxdist.core.registry import dual


class NuPIState(NamedTuple):
    """The last two of the smoothed inputs, in the shape of the multipliers; the older is () without `kd`."""

    smooth: Any
    older: Any


@dual(paper='Sohrabi et al. 2024, arXiv 2406.04558', examples={'nupi(ki=0.01, kp=0.1)': ()})
def nupi(ki: float, kp: float, nu: float = 0.0, kd: float = 0.0) -> optax.GradientTransformation:
    """A controller: it answers to how large violations are (as plain ascent does) and to how fast they change.

    With e_t the violation, xi_t = nu xi_{t-1} + (1 - nu) e_t from xi = 0, multipliers move by

        ki e_t + kp (xi_t - xi_{t-1}) + kd (xi_t - 2 xi_{t-1} + xi_{t-2}).

    So nu = 0 and kd = 0 is a PI controller, and takes parameters where the augmented Lagrangian of penalty kp takes
    them beside plain ascent of rate ki; kp = kd = 0 is plain ascent. Momentum, `sgd(a, momentum=b)`, is a negative
    gain: ki = a / (1 - b), kp = -a b / (1 - b)^2, nu = b. The paper starts from xi_0 = e_0 or from a given xi_{-1};
    here xi_{-1} = 0, so that the first step has kp (1 - nu) e_0 in it; optax's `scale_by_optimistic_gradient` has not.

    Of a noisy inequality that is idle, kp keeps a small multiplier above 0: it follows every rise of the value, and
    the projection cuts off the falls.

    Args:
        ki: the integral gain, which is the rate of plain ascent.
        kp: the proportional gain: it damps oscillations, and too much of it makes others. Both gains are as in the
            formula: where a dual optimiser with a rate of its own has gains beside it, they are multiples of the rate.
        nu: how slowly the smoothed violation follows, from 0 to below 1.
        kd: the derivative gain.

    Raises:
        InputError: `nu` out of range, or gains that would move no multiplier.

    >>> controller = nupi(ki=0.1, kp=1.0)
    >>> state = controller.init(jnp.zeros(()))
    >>> for violation in (2.0, 3.0):  # fed, as every dual line is, with minus the violation
    ...     move, state = controller.update(jnp.float32(-violation), state)
    ...     print(round(float(move), 4))
    2.2
    1.3
    """
    if not 0 <= nu < 1:
        raise InputError(f'nu={nu} of nupi must be from 0 to below 1')
    if ki < 0:
        raise InputError(f'ki={ki} of nupi must be 0 or more: below, a violation that lasts lowers its multiplier')
    if ki == kp == kd == 0:
        raise InputError('nupi with gains ki, kp and kd of 0 moves no multiplier')

    def init(multipliers: Any) -> NuPIState:
        zeros = jax.tree.map(jnp.zeros_like, multipliers)
        return NuPIState(zeros, zeros if kd else ())

    def update(updates: Any, state: NuPIState, params: Any = None) -> tuple[Any, NuPIState]:
        del params
        smooth = jax.tree.map(lambda s, u: nu * s + (1 - nu) * u, state.smooth, updates)
        moves = jax.tree.map(lambda u, new, old: -(ki * u + kp * (new - old)), updates, smooth, state.smooth)
        if kd:
            bend = jax.tree.map(lambda new, old, older: new - 2 * old + older, smooth, state.smooth, state.older)
            moves = jax.tree.map(lambda m, b: m - kd * b, moves, bend)
        return moves, NuPIState(smooth, state.smooth if kd else ())

    return optax.GradientTransformation(init, update)


@dual(paper='Gallego-Posada et al. 2022, arXiv 2208.04425', examples={'sgd(0.01) | restart()': ()}, final=True)
def restart() -> optax.GradientTransformationExtraArgs:
    """Sets the multiplier of an inequality that holds, with room to spare, to 0; it comes last in a dual line.

    A multiplier that has grown while its constraint was violated would otherwise push on for as long again. Those of
    equalities stay. What a controller or a momentum before it remembers is not reset.

    >>> chain = optax.chain(optax.sgd(1.0), restart())
    >>> at = jnp.array([5.0, 5.0])
    >>> told = {'violations': jnp.array([-0.1, 0.1]), 'least': jnp.zeros(2)}
    >>> chain.update(-told['violations'], chain.init(at), at, **told)[0]
    Array([-5. ,  0.1], dtype=float32)
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, violations: Any, least: Any, **_: Any
    ) -> tuple[Any, Any]:
        again = jax.tree.map(
            lambda u, p, v, low: jnp.where((v < 0) & jnp.isfinite(low), -p, u), updates, params, violations, least
        )
        return again, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@dual(paper='Hestenes 1969, Multiplier and gradient methods', examples={'scale_by_penalty() | sgd(1.0)': ()})
def scale_by_penalty() -> optax.GradientTransformationExtraArgs:
    """Multiplies what multipliers are moved by with the penalty: followed by sgd(1.0), l <- l + c g.

    >>> chain = optax.chain(scale_by_penalty(), optax.sgd(1.0))
    >>> float(chain.update(-0.5, chain.init(0.0), 0.0, penalty=4.0)[0])
    2.0
    """

    def update(updates: Any, state: Any, params: Any = None, *, penalty: Any, **_: Any) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda u: u * penalty, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@dual(
    paper='Duchi et al. 2008, Efficient projections onto the l1-ball',
    examples={'sgd(0.01) | within(radius=10.0)': ()},
    final=True,
)
def within(most: float = math.inf, radius: float = math.inf) -> optax.GradientTransformationExtraArgs:
    """Projects multipliers, as moved so far, onto a box and then onto a ball; it comes last in a dual line.

    Without a bound multipliers of contradictory constraints grow without end. With a radius R the constraints are
    those of a player who may spend R on them all: their worst violations are about (f range) / R at the end.

    Args:
        most: no multiplier exceeds it; those of equalities lie between -most and most.
        radius: the most that the 1-norm of all multipliers together may be.

    Raises:
        InputError: a bound that is not above 0, or no bound.

    >>> chain = optax.chain(optax.sgd(1.0), within(radius=3.0))
    >>> at = {'a': jnp.zeros(2)}
    >>> chain.update({'a': jnp.array([-4.0, -1.0])}, chain.init(at), at)[0]
    {'a': Array([3., 0.], dtype=float32)}
    """
    if not (most > 0 and radius > 0):
        raise InputError(f'within(most={most}, radius={radius}) needs bounds above 0')
    if math.isinf(most) and math.isinf(radius):
        raise InputError('within() needs a bound: most=..., of each multiplier, or radius=..., of all together')

    def update(updates: Any, state: Any, params: Any = None, *, least: Any = None, **_: Any) -> tuple[Any, Any]:
        lower = jax.tree.map(lambda p: jnp.zeros_like(p), params) if least is None else least
        moved = jax.tree.map(lambda p, u, low: jnp.clip(p + u, jnp.maximum(low, -most), most), params, updates, lower)
        if math.isfinite(radius):
            # Not projection_l1_ball, whose cond wants multipliers that are all of one type: shared, or each worker's.
            near, inside = projections.projection_l1_sphere(moved, radius), optax.tree.norm(moved, ord=1) <= radius
            moved = jax.tree.map(lambda m, n: jnp.where(inside, m, n), moved, near)
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
