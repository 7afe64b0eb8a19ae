"""A NumPy twin of constrained training: W workers in plain loops, one central gradient, and no JAX.

Written from the rules alone, and from the papers that its parts name. The parts are here by name, too, for tests.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy_duals import Growing, Link, Nupi, Restart, ScaleByPenalty, Seen, Sgd, Within, ascended, onto_ball
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
    'Path',
    'Restart',
    'ScaleByPenalty',
    'Sgd',
    'Twin',
    'Within',
    'onto_ball',
    'pad',
]

Shards = Sequence[Shard]


class Path(NamedTuple):
    """What happened in T steps.

    `params` [T + 1, d], `penalty` [T + 1] and every name's `multipliers` [T + 1, ...] are there before each step and
    after the last; `violations` [T, ...] are those that the step fed, or would have fed (0 for absent examples);
    `stepped` [T] tells whether it took a dual step; `losses` [T] are mean losses at params[:-1].
    """

    params: Array
    multipliers: dict[str, Array]
    violations: dict[str, Array]
    penalty: Array
    stepped: Array
    losses: Array


class State(NamedTuple):
    """Where a walk stands: w and its trace [d], multipliers by name, the links' memories, and the penalty's."""

    w: Array
    trace: Array
    multipliers: dict[str, Array]
    memories: list[Array]
    penalty: float
    worst: float | None = None  # at the dual step before
    taken: int = 0  # dual steps


class Twin:
    """Walks the rules, one batch a step; a batch is a list of one shard for each worker.

    `penalty` is a number, a schedule of the dual steps taken, or `Growing`; `dual` is a list of links. The state of a
    link, too, stays for multipliers of examples that are not in the batch.
    """

    def __init__(
        self,
        loss: Loss,
        constraints: Mapping[str, Constraint],
        dual: Sequence[Link] = (Sgd(0.1),),
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

    def walk(self, start: Array, batches: Sequence[Shards]) -> Path:
        """From `start` [d] and multipliers 0, one step a batch."""
        self.size = max(1 + int(index_of(shard).max(initial=-1)) for shards in batches for shard in shards)
        states, fed, losses = [self._begin(np.asarray(start, float), batches[0])], [], []
        stepped = [self._steps(t) for t in range(len(batches))]
        for shards, on in zip(batches, stepped, strict=True):
            state = states[-1]
            sums = total([self.loss(state.w, shard) for shard in shards])[0]
            losses.append(sums / sum(weight_of(shard).sum() for shard in shards))
            state, seen = getattr(self, '_' + self.order)(state, shards, on)
            states.append(self._settled(state, seen) if on else state)
            fed.append({name: one.value for name, one in seen.items()})
        return Path(
            np.array([state.w for state in states]),
            {name: np.array([state.multipliers[name] for state in states]) for name in self.constraints},
            {name: np.array([values[name] for values in fed]) for name in self.constraints},
            np.array([state.penalty for state in states]),
            np.array(stepped),
            np.array(losses),
        )

    def _begin(self, w: Array, shards: Shards) -> State:
        zeros = {name: np.zeros(one.value.shape) for name, one in self.entries(w, shards, False).items()}
        memory = np.zeros((2, sum(array.size for array in zeros.values())))
        return State(w, np.zeros((2, len(w))), zeros, [memory] * len(self.dual), self._penalty_at(0))

    def _penalty_at(self, taken: int) -> float:
        if isinstance(self.penalty, Growing):
            return self.penalty.start
        return self.penalty(taken) if callable(self.penalty) else self.penalty

    def _steps(self, t: int) -> bool:
        return (t + (self.order == 'primal_first')) % self.every == 0

    # The orders: a state and a batch in; the next state, and the entries that fed the multipliers, out.

    def _alternating(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        seen = self.entries(state.w, shards, False)
        ascended = self._ascend(state, seen, on)
        return self._join(state, ascended, self._descend(state, state.w, ascended[0], shards)), seen

    def _simultaneous(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        seen = self.entries(state.w, shards, False)
        descended = self._descend(state, state.w, state.multipliers, shards)
        return self._join(state, self._ascend(state, seen, on), descended), seen

    def _primal_first(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        descended = self._descend(state, state.w, state.multipliers, shards)
        seen = self.entries(descended[0], shards, False)
        return self._join(state, self._ascend(state, seen, on), descended), seen

    def _extragradient(self, state: State, shards: Shards, on: bool) -> tuple[State, dict[str, Entries]]:
        ahead, _ = self._descend(state, state.w, state.multipliers, shards)
        multipliers, _ = self._ascend(state, self.entries(state.w, shards, False), on)
        seen = self.entries(ahead, shards, False)
        descended = self._descend(state, ahead, multipliers, shards)
        return self._join(state, self._ascend(state, seen, on), descended), seen

    def _join(self, state: State, ascended: tuple[dict[str, Array], list[Array]], descended: Pair) -> State:
        (multipliers, memories), (w, trace) = ascended, descended
        return state._replace(w=w, trace=trace, multipliers=multipliers, memories=memories)

    def _descend(self, state: State, at: Array, multipliers: Mapping[str, Array], shards: Shards) -> Pair:
        """The step from the state's w by the gradient at another point, and the optimiser's trace."""
        _, gradient = self.lagrangian(at, multipliers, state.penalty, shards)
        seen = Seen(state.w, gradient, np.full(len(state.w), False), state.penalty)
        move, trace = self.primal(gradient, state.trace, seen)
        return state.w + move, trace

    def _ascend(self, state: State, seen: Mapping[str, Entries], on: bool) -> tuple[dict[str, Array], list[Array]]:
        """The multipliers and the links' memories after a dual step; absent examples keep theirs."""
        if not on:
            return state.multipliers, state.memories
        before, violations = self._flat(state.multipliers), self._flat({n: one.value for n, one in seen.items()})
        kinds = {n: np.full(one.value.shape, self.constraints[n].kind == 'inequality') for n, one in seen.items()}
        present = self._flat({n: one.present for n, one in seen.items()})
        after, memories = ascended(
            self.dual, state.memories, Seen(before, violations, self._flat(kinds), state.penalty)
        )
        kept = [np.where(present, new, old) for new, old in zip(memories, state.memories, strict=True)]
        return self._named(np.where(present, after, before), state.multipliers), kept

    def _settled(self, state: State, seen: Mapping[str, Entries]) -> State:
        """The state after a dual step's penalty is set for the steps to come."""
        kinds = {name: self.constraints[name].kind for name in seen}
        sizes = [np.abs(one.value) if kinds[n] == 'equality' else one.value for n, one in seen.items()]
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
