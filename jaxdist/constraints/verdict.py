"""The outcome of a run for each constraint: whether it holds and what its bound costs, or why it does not hold."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

GROWS = 1.2
"""A multiplier above this multiple of its size halfway, which has seldom fallen, counts as still growing."""
SHRINKS = 0.9
"""A violation above this fraction of its size halfway counts as not shrinking."""


class Verdict(NamedTuple):
    """The outcome for one constraint.

    Attributes:
        holds: whether its violation is within the tolerance.
        value: g or h at the end, where the violation is largest.
        violation: the violation at the end.
        multiplier: the last multiplier; None where there is none to show.
        words: the outcome as a sentence, with the evidence.
    """

    holds: bool
    value: float
    violation: float
    multiplier: float | None
    words: str


class Observation(NamedTuple):
    """A constraint at one step of training: its violation and its multiplier, None where unknown."""

    violation: float | None
    multiplier: float | None


def verdicts(
    values: Mapping[str, float],
    violations: Mapping[str, float],
    history: Mapping[str, Sequence[Observation]],
    tolerance: float,
    priced: Collection[str] = (),
) -> dict[str, Verdict]:
    """The outcome for each constraint.

    A constraint is *infeasible as posed* if its multiplier has kept growing through the second half of training and its
    violation has not shrunk there: on a feasible problem, a multiplier that is fed with violations for long enough
    makes them shrink. A run that is too short, or a dual line that is too slow, can look the same; the sentence
    mentions it.

    Args:
        values: each constraint's value at the end, over all training examples or a sample of them.
        violations: each constraint's violation at the end, likewise.
        history: each constraint's observations during training, in order.
        tolerance: the largest violation of a constraint that holds.
        priced: the constraints whose multiplier is the rate at which relaxing the bound lowers the loss: those with one
            value.

    >>> rising = [Observation(0.5, 0.1 * t) for t in range(10)]
    >>> verdict = verdicts({'small': 0.5}, {'small': 0.5}, {'small': rising}, 0.01)['small']
    >>> verdict.holds, verdict.words
    (False, 'small does not hold: violated by 0.5 (tolerance 0.01). Infeasible as posed, or contradicted by another
    constraint, unless the dual line is too slow: the multiplier grew from 0.5 halfway to 0.9, and the violation did not
    shrink (0.5, then 0.5)')
    """
    return {
        name: _verdict(name, values[name], violations[name], history.get(name, ()), tolerance, name in priced)
        for name in values
    }


def _verdict(
    name: str, value: float, violation: float, history: Sequence[Observation], tolerance: float, priced: bool
) -> Verdict:
    multiplier = history[-1].multiplier if history else None
    if value != value:  # NaN: a rate over no example, as of an empty group
        return Verdict(False, value, violation, multiplier, f'{name} is unknown: no example determines its value')
    if violation <= tolerance:
        words = (
            f'{name} holds: violation {violation:.3g} <= {tolerance:g}{_price(value, multiplier, tolerance, priced)}'
        )
        return Verdict(True, value, violation, multiplier, words)
    words = f'{name} does not hold: violated by {violation:.3g} (tolerance {tolerance:g}). {_reason(history)}'
    return Verdict(False, value, violation, multiplier, words)


def _price(value: float, multiplier: float | None, tolerance: float, priced: bool) -> str:
    """The cost of a constraint that holds. A value far below 0 is that of an inequality."""
    if not multiplier:
        return f'; slack {-value:.3g}, the bound costs nothing' if value < 0 else ''
    if value < -tolerance:
        # Complementary slackness: at a solution the multiplier of an inactive constraint is 0.
        return f'; slack {-value:.3g}, but the multiplier, {multiplier:.3g}, has not converged and is not a price'
    if not priced:
        return f'; the largest of its multipliers is {multiplier:.3g}'
    return f'; relaxing the bound by 1 would lower the loss at the rate of {abs(multiplier):.3g}'


def _reason(history: Sequence[Observation]) -> str:
    """Why a constraint does not hold, by the second half of training."""
    known = [(v, m) for v, m in history if v is not None and m is not None]
    if len(known) < 4:
        return 'Too few records to determine the reason'
    if not any(multiplier for _, multiplier in known):
        return 'Its multiplier never moved from 0: nothing enforces the constraint'
    half, quarter = known[len(known) // 2 :], max(len(known) // 4, 1)
    before, after = (
        sum(violation for violation, _ in part) / quarter
        for part in (known[len(known) // 2 - quarter : len(known) // 2], known[-quarter:])
    )
    low, high = half[0][1], half[-1][1]
    evidence = f'({before:.3g}, then {after:.3g})'
    if _keeps_growing([multiplier for _, multiplier in half]) and after > SHRINKS * before:
        return (
            'Infeasible as posed, or contradicted by another constraint, unless the dual line is too slow: the '
            f'multiplier grew from {low:.3g} halfway to {high:.3g}, and the violation did not shrink {evidence}'
        )
    if after <= SHRINKS * before:
        return f'Train longer: the multiplier is {high:.3g}, and the violation still shrinks {evidence}'
    return (
        f'The violation oscillates {evidence}, and the multiplier is {high:.3g}: a smaller dual rate, or '
        'nupi(ki=..., kp=...), may damp it'
    )


def _keeps_growing(multipliers: Sequence[float]) -> bool:
    """Whether multipliers end well above their start in size, on one side of 0, and seldom fall in between."""
    one_side = min(multipliers) >= 0 or max(multipliers) <= 0
    sizes = [abs(multiplier) for multiplier in multipliers]
    rises = sum(b >= a for a, b in pairwise(sizes))
    return one_side and sizes[-1] > GROWS * sizes[0] and rises >= 0.8 * (len(sizes) - 1)
