"""PI and PID controllers of multipliers (Sohrabi et al. 2024, On PI controllers for updating Lagrange multipliers)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.registry import dual


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
        ValueError: `nu` out of range, or gains that would move no multiplier.

    >>> controller = nupi(ki=0.1, kp=1.0)
    >>> state = controller.init(jnp.zeros(()))
    >>> for violation in (2.0, 3.0):  # fed, as every dual line is, with minus the violation
    ...     move, state = controller.update(jnp.float32(-violation), state)
    ...     print(round(float(move), 4))
    2.2
    1.3
    """
    if not 0 <= nu < 1:
        raise ValueError(f'nu={nu} of nupi must be from 0 to below 1')
    if ki < 0:
        raise ValueError(f'ki={ki} of nupi must be 0 or more: below, a violation that lasts lowers its multiplier')
    if ki == kp == kd == 0:
        raise ValueError('nupi with gains ki, kp and kd of 0 moves no multiplier')

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
