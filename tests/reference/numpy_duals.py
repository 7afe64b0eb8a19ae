"""The dual part of the NumPy reference of constrained training: dual transformations, projections and penalties.

From Sohrabi et al. 2024 (nuPI, arXiv 2406.04558), Stooke et al. 2020 (its derivative term, arXiv 2007.03964), Duchi
et al. 2008 (the 1-norm ball) and Bertsekas 1996 (the method of multipliers).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy_measures import Array, Pair

# The dual line: transformations that are fed with minus the violations, all multipliers in one vector [N].


class Extra(NamedTuple):
    """The extra arguments of a transformation: multipliers, violations, which are inequalities [N], and the penalty."""

    multipliers: Array
    violations: Array
    inequality: Array
    penalty: float


class Transformation(Protocol):
    """`(updates [N], state [k, N], extra) -> (updates [N], state [k, N])`; the initial state is zeros."""

    def __call__(self, updates: Array, state: Array, extra: Extra) -> Pair: ...


class Sgd(NamedTuple):
    """optax.sgd: trace = updates + momentum * trace; -rate * trace."""

    rate: float
    momentum: float = 0.0

    def __call__(self, updates: Array, state: Array, extra: Extra) -> Pair:
        trace = updates + self.momentum * state[0]
        return -self.rate * trace, np.array([trace, state[1]])


class Nupi(NamedTuple):
    """nuPI with a derivative term; the state is xi_{t-1} and xi_{t-2}."""

    ki: float
    kp: float
    nu: float = 0.0
    kd: float = 0.0

    def __call__(self, updates: Array, state: Array, extra: Extra) -> Pair:
        error, (last, older) = -updates, state
        xi = self.nu * last + (1 - self.nu) * error
        move = self.ki * error + self.kp * (xi - last) + self.kd * (xi - 2 * last + older)
        return move, np.array([xi, last])


class Within(NamedTuple):
    """The proposal clipped to [least, most], then projected onto the 1-norm ball over all multipliers."""

    most: float = np.inf
    radius: float = np.inf

    def __call__(self, updates: Array, state: Array, extra: Extra) -> Pair:
        least = np.where(extra.inequality, 0.0, -self.most)
        clipped = np.clip(extra.multipliers + updates, least, self.most)
        return onto_ball(clipped, self.radius) - extra.multipliers, state


class Restart(NamedTuple):
    """The multiplier of an inequality that holds strictly becomes 0 at once."""

    def __call__(self, updates: Array, state: Array, extra: Extra) -> Pair:
        return np.where(extra.inequality & (extra.violations < 0), -extra.multipliers, updates), state


class ScaleByPenalty(NamedTuple):
    """The update times the penalty: the method of multipliers."""

    def __call__(self, updates: Array, state: Array, extra: Extra) -> Pair:
        return extra.penalty * updates, state


def onto_ball(z: Array, radius: float) -> Array:
    """The nearest point with 1-norm <= radius (Duchi et al. 2008, figure 1)."""
    size = np.abs(z)
    if size.sum() <= radius:
        return z
    sizes = np.sort(size)[::-1]
    thresholds = (np.cumsum(sizes) - radius) / np.arange(1, len(z) + 1)
    theta = thresholds[np.flatnonzero(sizes > thresholds)[-1]] if radius > 0 else sizes[0]
    return np.sign(z) * np.maximum(size - theta, 0)


def ascended(dual: Sequence[Transformation], states: Sequence[Array], extra: Extra) -> tuple[Array, list[Array]]:
    """The multipliers after a dual step, and the transformations' states."""
    updates, new_states = -extra.violations, []
    for transformation, state in zip(dual, states, strict=True):
        updates, state = transformation(updates, state, extra)
        new_states.append(state)
    proposal = extra.multipliers + updates
    return np.where(extra.inequality, np.maximum(proposal, 0), proposal), new_states


class Growing(NamedTuple):
    """A penalty that grows after a dual step whose worst violation did not shrink enough."""

    start: float
    factor: float
    shrink: float
    most: float

    def after(self, penalty: float, worst: float, before: float | None) -> float:
        """The penalty after a dual step; `before` is the worst violation at the last one, if there was one."""
        if before is not None and worst > self.shrink * before:
            return min(self.factor * penalty, self.most)
        return penalty
