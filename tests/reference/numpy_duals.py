"""The dual side of the NumPy twin of constrained training: links, projections and penalties.

From Sohrabi et al. 2024 (nuPI, arXiv 2406.04558), Stooke et al. 2020 (its derivative term, arXiv 2007.03964), Duchi
et al. 2008 (the 1-norm ball) and Bertsekas 1996 (the method of multipliers).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy_measures import Array, Pair

# The dual line: links that are fed with minus the violations, all multipliers in one vector [N].


class Seen(NamedTuple):
    """What a link sees beside its input: multipliers, violations, which are inequalities [N], and the penalty."""

    multipliers: Array
    violations: Array
    inequality: Array
    penalty: float


class Link(Protocol):
    """`(updates [N], memory [k, N], seen) -> (updates [N], memory [k, N])`, with a memory of zeros at first."""

    def __call__(self, updates: Array, memory: Array, seen: Seen) -> Pair: ...


class Sgd(NamedTuple):
    """optax.sgd: trace = updates + momentum * trace; -rate * trace."""

    rate: float
    momentum: float = 0.0

    def __call__(self, updates: Array, memory: Array, seen: Seen) -> Pair:
        trace = updates + self.momentum * memory[0]
        return -self.rate * trace, np.array([trace, memory[1]])


class Nupi(NamedTuple):
    """nuPI with a derivative term; the memory is xi_{t-1}, xi_{t-2}, zeros at first."""

    ki: float
    kp: float
    nu: float = 0.0
    kd: float = 0.0

    def __call__(self, updates: Array, memory: Array, seen: Seen) -> Pair:
        error, (last, older) = -updates, memory
        xi = self.nu * last + (1 - self.nu) * error
        move = self.ki * error + self.kp * (xi - last) + self.kd * (xi - 2 * last + older)
        return move, np.array([xi, last])


class Within(NamedTuple):
    """The proposal clipped to [least, most], then projected onto the 1-norm ball over all multipliers."""

    most: float = np.inf
    radius: float = np.inf

    def __call__(self, updates: Array, memory: Array, seen: Seen) -> Pair:
        least = np.where(seen.inequality, 0.0, -self.most)
        clipped = np.clip(seen.multipliers + updates, least, self.most)
        return onto_ball(clipped, self.radius) - seen.multipliers, memory


class Restart(NamedTuple):
    """An inequality that holds strictly gets multiplier 0 at once."""

    def __call__(self, updates: Array, memory: Array, seen: Seen) -> Pair:
        return np.where(seen.inequality & (seen.violations < 0), -seen.multipliers, updates), memory


class ScaleByPenalty(NamedTuple):
    """The update times the penalty: the method of multipliers."""

    def __call__(self, updates: Array, memory: Array, seen: Seen) -> Pair:
        return seen.penalty * updates, memory


def onto_ball(z: Array, radius: float) -> Array:
    """The nearest point with 1-norm <= radius (Duchi et al. 2008, figure 1)."""
    size = np.abs(z)
    if size.sum() <= radius:
        return z
    sizes = np.sort(size)[::-1]
    thresholds = (np.cumsum(sizes) - radius) / np.arange(1, len(z) + 1)
    theta = thresholds[np.flatnonzero(sizes > thresholds)[-1]] if radius > 0 else sizes[0]
    return np.sign(z) * np.maximum(size - theta, 0)


def ascended(dual: Sequence[Link], memories: Sequence[Array], seen: Seen) -> tuple[Array, list[Array]]:
    """The multipliers after a dual step, and the links' memories."""
    updates, kept = -seen.violations, []
    for link, memory in zip(dual, memories, strict=True):
        updates, memory = link(updates, memory, seen)
        kept.append(memory)
    proposal = seen.multipliers + updates
    return np.where(seen.inequality, np.maximum(proposal, 0), proposal), kept


class Growing(NamedTuple):
    """A penalty that grows after a dual step whose worst violation did not shrink enough."""

    start: float
    factor: float
    shrink: float
    most: float

    def after(self, penalty: float, worst: float, before: float | None) -> float:
        """The penalty after a dual step; `before` is the worst violation at the dual step before, if there was one."""
        if before is not None and worst > self.shrink * before:
            return min(self.factor * penalty, self.most)
        return penalty
