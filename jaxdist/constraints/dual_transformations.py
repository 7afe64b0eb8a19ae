"""Transformations for dual lines, beside those of optax: PI and PID controllers, restarts, projections.

A dual line gets minus the violations as updates; see `jaxdist.constraints.dual_ascent`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import projections

from jaxdist.core.errors import InputError
from jaxdist.core.registry import dual


class NuPIState(NamedTuple):
    """The last two smoothed updates xi, in the shape of the multipliers.

    Attributes:
        smooth: minus xi of the last dual step, as the updates are minus the violations.
        older: minus xi of the dual step before; () without `kd`.
    """

    smooth: optax.Updates
    older: optax.Updates


@dual(paper='Sohrabi et al. 2024, arXiv 2406.04558', examples={'nupi(ki=0.01, kp=0.1)': ()})
def nupi(ki: float, kp: float, nu: float = 0.0, kd: float = 0.0) -> optax.GradientTransformation:
    """A PI or PID controller: multipliers follow the size of violations, as in plain ascent, and their rate of change.

    With e_t the violation and xi_t = nu xi_{t-1} + (1 - nu) e_t its moving average, multipliers move by

        ki e_t + kp (xi_t - xi_{t-1}) + kd (xi_t - 2 xi_{t-1} + xi_{t-2}).

    Special cases: kp = kd = 0 is plain ascent; nu = 0 and kd = 0 is a PI controller, under which parameters move as in
    plain ascent of rate ki on the augmented Lagrangian of penalty kp. Momentum, `sgd(a, momentum=b)`, is a negative
    gain: ki = a / (1 - b), kp = -a b / (1 - b)^2, nu = b.

    Deviation from the paper (On PI controllers for updating Lagrange multipliers): it starts from xi_0 = e_0 or from a
    given xi_{-1}; here xi_{-1} = 0, so that the first step contains kp (1 - nu) e_0. The first step of optax's
    `scale_by_optimistic_gradient` does not.

    For an inactive inequality with a noisy value, kp keeps a small multiplier above 0: each rise of the value raises
    it, and the projection at 0 clips the falls.

    Args:
        ki: the integral gain, which is the rate of plain ascent.
        kp: the proportional gain; it damps oscillations, and causes them if it is too large. Both gains are as in the
            formula above. An implementation whose dual optimiser has a rate as well multiplies its gains by that rate.
        nu: the decay of the moving average, from 0 to below 1.
        kd: the derivative gain.

    Raises:
        InputError: `nu` or `ki` out of range, or all gains 0, which move no multiplier.

    >>> import numpy as np
    >>> controller = nupi(ki=0.1, kp=1.0)
    >>> state = controller.init(np.zeros(()))
    >>> for violation in (2.0, 3.0):
    ...     move, state = controller.update(-violation, state)
    ...     print(round(float(move), 4))
    2.2
    1.3
    """
    if not 0 <= nu < 1:
        raise InputError(f'nu={nu} of nupi must be from 0 to below 1')
    if ki < 0:
        raise InputError(f'ki={ki} of nupi must be 0 or more: below 0, a lasting violation lowers its multiplier')
    if ki == kp == kd == 0:
        raise InputError('nupi with ki = kp = kd = 0 moves no multiplier')

    def init(multipliers: optax.Params) -> NuPIState:
        zeros = jax.tree.map(jnp.zeros_like, multipliers)
        return NuPIState(zeros, zeros if kd else ())

    def update(
        updates: optax.Updates, state: NuPIState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NuPIState]:
        del params
        smooth = jax.tree.map(lambda s, u: nu * s + (1 - nu) * u, state.smooth, updates)
        moves = jax.tree.map(lambda u, new, old: -(ki * u + kp * (new - old)), updates, smooth, state.smooth)
        if kd:
            second = jax.tree.map(lambda new, old, older: new - 2 * old + older, smooth, state.smooth, state.older)
            moves = jax.tree.map(lambda m, difference: m - kd * difference, moves, second)
        return moves, NuPIState(smooth, state.smooth if kd else ())

    return optax.GradientTransformation(init, update)


@dual(paper='Gallego-Posada et al. 2022, arXiv 2208.04425', examples={'sgd(0.01) | restart()': ()}, final=True)
def restart() -> optax.GradientTransformationExtraArgs:
    """Sets the multiplier of a strictly satisfied inequality (g < 0) to 0 at once; it comes last in a dual line.

    Without it, a multiplier that has grown while its constraint was violated takes as long to decay, and the constraint
    acts on the parameters until then. Multipliers of equalities are unchanged. The states of transformations before it,
    of a controller or a momentum, are not reset.

    >>> import numpy as np
    >>> chain = optax.chain(optax.sgd(1.0), restart())
    >>> multipliers = np.array([5.0, 5.0], np.float32)
    >>> extra = {'violations': np.array([-0.1, 0.1], np.float32), 'least': np.zeros(2, np.float32)}
    >>> chain.update(-extra['violations'], chain.init(multipliers), multipliers, **extra)[0]
    Array([-5. ,  0.1], dtype=float32)
    """

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, *, violations: Any, least: Any, **_: Any
    ) -> tuple[optax.Updates, Any]:
        # Equalities have a lower bound of minus infinity.
        restarted = jax.tree.map(
            lambda u, p, v, low: jnp.where((v < 0) & jnp.isfinite(low), -p, u), updates, params, violations, least
        )
        return restarted, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@dual(paper='Hestenes 1969, Multiplier and gradient methods', examples={'scale_by_penalty() | sgd(1.0)': ()})
def scale_by_penalty() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates with the penalty c: before sgd(1.0), the method of multipliers, l <- l + c g.

    Also Powell 1969, A method for nonlinear constraints in minimization problems.

    >>> chain = optax.chain(scale_by_penalty(), optax.sgd(1.0))
    >>> float(chain.update(-0.5, chain.init(0.0), 0.0, penalty=4.0)[0])
    2.0
    """

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, *, penalty: Any, **_: Any
    ) -> tuple[optax.Updates, Any]:
        del params
        return jax.tree.map(lambda u: u * penalty, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@dual(
    paper='Duchi et al. 2008, Efficient projections onto the l1-ball',
    examples={'sgd(0.01) | within(radius=10.0)': ()},
    final=True,
)
def within(most: float = math.inf, radius: float = math.inf) -> optax.GradientTransformationExtraArgs:
    """Projects the moved multipliers onto a box, and then onto a ball of the 1-norm; it comes last in a dual line.

    Without a bound, the multipliers of contradictory constraints grow without limit. A radius R is TFCO's
    `maximum_multiplier_radius` (Cotter et al. 2019, arXiv 1809.04198): the largest violations at the end are about
    (range of f) / R.

    Args:
        most: the upper bound of each multiplier; those of equalities lie between -most and most.
        radius: the upper bound of the 1-norm of all multipliers together.

    Raises:
        InputError: a bound that is not above 0, or no bound.

    >>> import numpy as np
    >>> chain = optax.chain(optax.sgd(1.0), within(radius=3.0))
    >>> multipliers = {'a': np.zeros(2, np.float32)}
    >>> chain.update({'a': np.array([-4.0, -1.0], np.float32)}, chain.init(multipliers), multipliers)[0]
    {'a': Array([3., 0.], dtype=float32)}
    """
    if not (most > 0 and radius > 0):
        raise InputError(f'within(most={most}, radius={radius}) needs bounds above 0')
    if math.isinf(most) and math.isinf(radius):
        raise InputError('within() needs a bound: most=... of each multiplier, or radius=... of all together')

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, *, least: Any = None, **_: Any
    ) -> tuple[optax.Updates, Any]:
        lower = jax.tree.map(lambda p: jnp.zeros_like(p), params) if least is None else least
        moved = jax.tree.map(lambda p, u, low: jnp.clip(p + u, jnp.maximum(low, -most), most), params, updates, lower)
        if math.isfinite(radius):
            # Not projection_l1_ball: its cond needs multipliers of one type, all replicated or all varying over
            # workers.
            sphere, inside = projections.projection_l1_sphere(moved, radius), optax.tree.norm(moved, ord=1) <= radius
            moved = jax.tree.map(lambda m, s: jnp.where(inside, m, s), moved, sphere)
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
