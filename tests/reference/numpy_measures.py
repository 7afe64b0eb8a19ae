"""Constraints of the NumPy reference: reductions over workers in plain loops, and terms of the augmented Lagrangian.

Parameters are one vector w [d]. Functions return their value [...] and their Jacobian [..., d], written by hand.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Shard = Mapping[str, Array]
"""One worker's examples: `x` [B, d] and others [B]; `weight` and `index` (the examples' numbers) are optional."""

Pair = tuple[Array, Array]
Loss = Callable[[Array, Shard], Pair]


class Constraint(NamedTuple):
    """`then(reduced measure) - bound`, which must be <= 0 (`inequality`) or = 0 (`equality`).

    `measure` returns pairs: from `(w)` for over='none'; else from `(w, shard)`: the worker's sum, a value [B, ...] for
    each example ('mean', 'example'), or two pairs, numerator and denominator ('ratio'). Multipliers are fed with
    `measure`; the gradient, and relu(l + c g) in it, use the `proxy` if there is one. `then` returns a pair too, with
    the Jacobian [..., *reduced].
    """

    measure: Callable[..., Any]
    over: str
    kind: str = 'inequality'
    bound: Any = 0.0
    then: Callable[[Array], Pair] | None = None
    per_worker: bool = False
    proxy: Callable[..., Any] | None = None


def weight_of(shard: Shard) -> Array:
    """The examples' weights, [B]; 1 by default."""
    return np.asarray(shard['weight'], float) if 'weight' in shard else np.ones(len(shard['x']))


def index_of(shard: Shard) -> Array:
    """The examples' numbers within the worker's examples, [B]; 0 to B - 1 by default."""
    return np.asarray(shard['index']) if 'index' in shard else np.arange(len(shard['x']))


# Reductions over a group of workers: the reduced measure, its Jacobian, and where examples determine it (`known`).

Reduced = tuple[Array, Array, Array]


def total(pairs: Sequence[Pair]) -> Pair:
    """The sum of workers' pairs."""
    value, jacobian = (np.asarray(pairs[0][0], float), np.asarray(pairs[0][1], float))
    for more, slope in pairs[1:]:
        value, jacobian = value + more, jacobian + slope
    return value, jacobian


def quotient(numerator: Pair, denominator: Pair) -> Reduced:
    """The quotient, and 0 where the denominator is 0."""
    over = np.broadcast_to(denominator[0], np.shape(numerator[0]))
    known = over != 0
    safe = np.where(known, over, 1.0)
    value = np.where(known, numerator[0] / safe, 0.0)
    slope = (numerator[1] - value[..., None] * denominator[1]) / safe[..., None]
    return value, np.where(known[..., None], slope, 0.0), known


def by_none(measure: Callable[..., Any], w: Array, group: Sequence[Shard]) -> Reduced:
    """A function of the parameters alone: once, however many workers there are."""
    value, jacobian = measure(w)
    return value, jacobian, np.full(np.shape(value), True)


def by_sum(measure: Callable[..., Any], w: Array, group: Sequence[Shard]) -> Reduced:
    """The sum of the workers' sums."""
    value, jacobian = total([measure(w, shard) for shard in group])
    return value, jacobian, np.full(np.shape(value), True)


def by_mean(measure: Callable[..., Any], w: Array, group: Sequence[Shard]) -> Reduced:
    """The weighted mean over all examples of the group."""
    sums, counts = [], []
    for shard in group:
        weight = weight_of(shard)
        value, jacobian = measure(w, shard)
        sums.append((np.tensordot(weight, value, 1), np.tensordot(weight, jacobian, 1)))
        counts.append((weight.sum(), np.zeros(len(w))))
    return quotient(total(sums), total(counts))


def by_ratio(measure: Callable[..., Any], w: Array, group: Sequence[Shard]) -> Reduced:
    """The sum of numerators over the sum of denominators."""
    numerators, denominators = zip(*(measure(w, shard) for shard in group), strict=True)
    return quotient(total(numerators), total(denominators))


REDUCTIONS = {'none': by_none, 'sum': by_sum, 'mean': by_mean, 'ratio': by_ratio}


def value_of(constraint: Constraint, measure: Callable[..., Any], w: Array, group: Sequence[Shard]) -> Pair:
    """The value g and its Jacobian. With `then`, one denominator of 0 makes the whole value unknown."""
    value, jacobian, known = REDUCTIONS[constraint.over](measure, w, group)
    if constraint.then is not None:
        inner = np.ndim(value)
        value, outer = constraint.then(value)
        jacobian = np.tensordot(outer, jacobian, inner)
        known = np.full(np.shape(value), bool(np.all(known)))
    return np.where(known, value - constraint.bound, 0.0), np.where(known[..., None], jacobian, 0.0)


class Entries(NamedTuple):
    """A constraint's values, Jacobians, shares in the Lagrangian, and which of them the batch has examples of."""

    value: Array
    jacobian: Array
    share: Array
    present: Array


def entries_of(
    constraint: Constraint, measure: Callable[..., Any], w: Array, shards: Sequence[Shard], size: int
) -> Entries:
    """One entry per multiplier; with per_worker, a row per worker; for examples, [W, size]."""
    if constraint.over == 'example':
        return _examples(constraint, measure, w, shards, size)
    if constraint.per_worker:
        pairs = [value_of(constraint, measure, w, [shard]) for shard in shards]
        value, jacobian = (np.array(column) for column in zip(*pairs, strict=True))
    else:
        value, jacobian = value_of(constraint, measure, w, shards)
    return Entries(value, jacobian, np.ones(value.shape), np.full(value.shape, True))


def _examples(
    constraint: Constraint, measure: Callable[..., Any], w: Array, shards: Sequence[Shard], size: int
) -> Entries:
    values, jacobians = np.zeros((len(shards), size)), np.zeros((len(shards), size, len(w)))
    weights = np.zeros((len(shards), size))
    for worker, shard in enumerate(shards):
        at = index_of(shard)
        value, jacobians[worker, at] = measure(w, shard)
        values[worker, at] = value - constraint.bound
        weights[worker, at] = weight_of(shard)
    present = weights > 0
    return Entries(np.where(present, values, 0.0), jacobians, weights / (weights.sum() or 1.0), present)


# The augmented Lagrangian, entry by entry.


def term(kind: str, multiplier: Array, g: Array, c: float) -> Array:
    """The term of an entry in the Lagrangian."""
    if kind == 'equality' or c == 0:
        return multiplier * g + c / 2 * g**2
    return (np.maximum(multiplier + c * g, 0) ** 2 - multiplier**2) / (2 * c)


def effective(kind: str, multiplier: Array, g: Array, c: float) -> Array:
    """The derivative of `term` by g: the factor of g' in the gradient."""
    if kind == 'equality' or c == 0:
        return multiplier + c * g
    return np.maximum(multiplier + c * g, 0)


# For the JAX program: equal shares.


def pad(shards: Sequence[Shard]) -> dict[str, Array]:
    """One batch [W * B, ...] of equal shares, in the workers' order; shorter shards are padded with rows of weight 0.

    The padding is ones, so that a measure that ignores the weight fails. An `index` is padded with the smallest numbers
    that the shard does not have.
    """
    rows = max(len(shard['x']) for shard in shards)
    whole = [{**shard, 'weight': weight_of(shard)} for shard in shards]
    return {name: np.concatenate([_filled(name, shard[name], rows) for shard in whole]) for name in whole[0]}


def _filled(name: str, array: Array, rows: int) -> Array:
    missing = rows - len(array)
    if name == 'index':
        return np.append(array, np.setdiff1d(np.arange(2 * rows + array.max(initial=0)), array)[:missing])
    fill = np.zeros if name == 'weight' else np.ones
    return np.concatenate([array, fill((missing, *array.shape[1:]), array.dtype)])
