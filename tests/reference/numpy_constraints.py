"""Reference implementation of constrained training in NumPy: W workers in plain loops, one central gradient, no JAX.

Written from the documented rules and the papers that its parts name. The parts are exported here too, for tests.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy_duals import (
    Extra,
    Growing,
    Nupi,
    Restart,
    ScaleByPenalty,
    Sgd,
    Transformation,
    Within,
    ascended,
    onto_ball,
)
from numpy_measures import (
    Array,
    Constraint,
    Entries,
    Loss,
    Pair,
    Shard,
    effective,
    entries_of,
    index_of,
    pad,
    term,
    total,
    weight_of,
)

__all__ = [
    'Constraint',
    'Growing',
    'Nupi',
    'Reference',
    'Restart',
    'ScaleByPenalty',
    'Sgd',
    'Trajectory',
    'Within',
    'onto_ball',
    'pad',
]

Shards = Sequence[Shard]


class Trajectory(NamedTuple):
    """The trajectory of T steps.

    `params` [T + 1, d], `penalty` [T + 1] and every name's `multipliers` [T + 1, ...] are from before each step and
    after the last; `violations` [T, ...] are those that the step fed, or would have fed (0 for absent examples);
    `stepped` [T] is whether the step was a dual step; `losses` [T] are mean losses at params[:-1].
    """

    params: Array
    multipliers: dict[str, Array]
    violations: dict[str, Array]
    penalty: Array
    stepped: Array
    losses: Array


class State(NamedTuple):
    """The training state: w and its trace [d], multipliers by name, the dual transformations' states, the penalty."""

    w: Array
    trace: Array
    multipliers: dict[str, Array]
    dual_states: list[Array]
    penalty: float
    worst: float | None = None  # largest violation at the last dual step
    taken: int = 0  # dual steps taken


class Reference:
    """Trains on one batch per step; a batch is a list of one shard per worker.

    `penalty` is a number, a schedule of the dual steps taken, or `Growing`; `dual` is a list of transformations. For
    examples that are not in the batch, neither multipliers nor the transformations' states change.
    """

    def __init__(
        self,
        loss: Loss,
        constraints: Mapping[str, Constraint],
        dual: Sequence[Transformation] = (Sgd(0.1),),
        rate: float = 0.1,
        momentum: float = 0.0,
        order: str = 'alternating',
        every: int = 1,
        penalty: float | Callable[[int], float] | Growing = 0.0,
    ) -> None:
        self.loss, self.constraints, self.dual = loss, dict(constraints), list(dual)
        self.primal, self.order, self.every, self.penalty = Sgd(rate, momentum), order, every, penalty
        self.size = 0

    def entries(self, w: Array, shards: Shards, proxies: bool) -> dict[str, Entries]:
        """Every constraint's entries at `w`, of the measures or of the proxies in their place."""
        size = max([self.size, *(1 + index_of(shard).max(initial=-1) for shard in shards)])
        return {
            name: entries_of(one, (one.proxy if proxies else None) or one.measure, w, shards, size)
            for name, one in self.constraints.items()
        }

    def lagrangian(self, w: Array, multipliers: Mapping[str, Array], penalty: float, shards: Shards) -> Pair:
        """The augmented Lagrangian of the batch, and its gradient in w."""
        value, gradient = total([self.loss(w, shard) for shard in shards])
        count = sum(weight_of(shard).sum() for shard in shards)
        value, gradient = value / count, gradient / count
        for name, one in self.entries(w, shards, proxies=True).items():
            kind, multiplier = self.constraints[name].kind, multipliers[name]
            value = value + np.sum(one.share * term(kind, multiplier, one.value, penalty))
            pull = one.share * effective(kind, multiplier, one.value, penalty)
            gradient = gradient + np.tensordot(pull, one.jacobian, pull.ndim)
        return value, gradient

    def train(self, start: Array, batches: Sequence[Shards]) -> Trajectory:
        """From `start` [d] and multipliers of 0, one step per batch."""
        self.size = max(1 + int(index_of(shard).max(initial=-1)) for shards in batches for shard in shards)
        states, fed, losses = [self._begin(np.asarray(start, float), batches[0])], [], []
        stepped = [self._steps(t) for t in range(len(batches))]
        for shards, on in zip(batches, stepped, strict=True):
            state = states[-1]
            sums = total([self.loss(state.w, shard) for shard in shards])[0]
            losses.append(sums / sum(weight_of(shard).sum() for shard in shards))
            state, entries = getattr(self, '_' + self.order)(state, shards, on)
            states.append(self._with_penalty(state, entries) if on else state)
            fed.append({name: one.value for name, one in entries.items()})
        return Trajectory(
            np.array([state.w for state in states]),
            {name: np.array([state.multipliers[name] for state in states]) for name in self.constraints},
            {name: np.array([values[name] for values in fed]) for name in self.constraints},
            np.array([state.penalty for state in states]),
            np.array(stepped),
            np.array(losses),
        )

    def _begin(self, w: Array, shards: Shards) -> State:
        zeros = {name: np.zeros(one.value.shape) for name, one in self.entries(w, shards, False).items()}
        dual_state = np.zeros((2, sum(array.size for array in zeros.values())))
        return State(w, np.zeros((2, len(w))), zeros, [dual_state] * len(self.dual), self._penalty_at(0))

    def _penalty_at(self, taken: int) -> float:
        if isinstance(self.penalty, Growing):
            return self.penalty.start
        return self.penalty(taken) if callable(self.penalty) else self.penalty

    def _steps(self, t: int) -> bool:
        return (t + (self.order == 'primal_first')) % self.every == 0

    # The orders, each `(state, batch) -> (next state, the entries that fed the multipliers)`.

    def _alternating(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        entries = self.entries(state.w, shards, False)
        ascended = self._ascend(state, entries, on)
        return self._join(state, ascended, self._descend(state, state.w, ascended[0], shards)), entries

    def _simultaneous(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        entries = self.entries(state.w, shards, False)
        descended = self._descend(state, state.w, state.multipliers, shards)
        return self._join(state, self._ascend(state, entries, on), descended), entries

    def _primal_first(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        descended = self._descend(state, state.w, state.multipliers, shards)
        entries = self.entries(descended[0], shards, False)
        return self._join(state, self._ascend(state, entries, on), descended), entries

    def _extragradient(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        ahead, _ = self._descend(state, state.w, state.multipliers, shards)
        multipliers, _ = self._ascend(state, self.entries(state.w, shards, False), on)
        entries = self.entries(ahead, shards, False)
        descended = self._descend(state, ahead, multipliers, shards)
        return self._join(state, self._ascend(state, entries, on), descended), entries

    def _join(self, state: State, ascended: tuple[dict[str, Array], list[Array]], descended: Pair) -> State:
        (multipliers, dual_states), (w, trace) = ascended, descended
        return state._replace(w=w, trace=trace, multipliers=multipliers, dual_states=dual_states)

    def _descend(self, state: State, at: Array, multipliers: Mapping[str, Array], shards: Shards) -> Pair:
        """The step from the state's w by the gradient at another point, and the optimiser's trace."""
        _, gradient = self.lagrangian(at, multipliers, state.penalty, shards)
        extra = Extra(state.w, gradient, np.full(len(state.w), False), state.penalty)
        move, trace = self.primal(gradient, state.trace, extra)
        return state.w + move, trace

    def _ascend(self, state: State, entries: Mapping[str, Entries], on: bool) -> tuple[dict[str, Array], list[Array]]:
        """The multipliers and the transformations' states after a dual step; both are unchanged for absent examples."""
        if not on:
            return state.multipliers, state.dual_states
        before, violations = self._flat(state.multipliers), self._flat({n: one.value for n, one in entries.items()})
        kinds = {n: np.full(one.value.shape, self.constraints[n].kind == 'inequality') for n, one in entries.items()}
        present = self._flat({n: one.present for n, one in entries.items()})
        after, dual_states = ascended(
            self.dual, state.dual_states, Extra(before, violations, self._flat(kinds), state.penalty)
        )
        kept = [np.where(present, new, old) for new, old in zip(dual_states, state.dual_states, strict=True)]
        return self._named(np.where(present, after, before), state.multipliers), kept

    def _with_penalty(self, state: State, entries: Mapping[str, Entries]) -> State:
        """The state with the penalty after a dual step."""
        kinds = {name: self.constraints[name].kind for name in entries}
        sizes = [np.abs(one.value) if kinds[n] == 'equality' else one.value for n, one in entries.items()]
        worst = max(0.0, *(float(np.max(size, initial=0.0)) for size in sizes))
        if isinstance(self.penalty, Growing):
            penalty = self.penalty.after(state.penalty, worst, state.worst)
        else:
            penalty = self._penalty_at(state.taken + 1)
        return state._replace(penalty=penalty, worst=worst, taken=state.taken + 1)

    def _flat(self, arrays: Mapping[str, Array]) -> Array:
        return np.concatenate([np.ravel(arrays[name]) for name in self.constraints])

    def _named(self, vector: Array, like: Mapping[str, Array]) -> dict[str, Array]:
        ends = np.cumsum([like[name].size for name in self.constraints])[:-1]
        parts = np.split(vector, ends)
        return {name: part.reshape(like[name].shape) for name, part in zip(self.constraints, parts, strict=True)}
