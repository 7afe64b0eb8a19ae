"""Whether constraints hold at the end, in plain words and with the evidence."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

GROWS = 1.2
"""A multiplier that is so much larger at the end than halfway, and seldom fell, has grown without an end in sight."""
SHRINKS = 0.9
"""A violation of more than this part of what it was halfway has not shrunk."""


class Verdict(NamedTuple):
    """What became of one constraint.

    Attributes:
        holds: whether its violation is within the tolerance.
        value: g or h at the end, where it is violated most.
        violation: by how much it is not held.
        multiplier: at the end; None where there is none to show.
        words: all this in a sentence.
    """

    holds: bool
    value: float
    violation: float
    multiplier: float | None
    words: str


class Observation(NamedTuple):
    """A constraint at some step of training: its violation and its multiplier, None where unknown."""

    violation: float | None
    multiplier: float | None


def verdicts(
    values: Mapping[str, float],
    violations: Mapping[str, float],
    told: Mapping[str, Sequence[Observation]],
    tolerance: float,
    priced: Collection[str] = (),
) -> dict[str, Verdict]:
    """The verdict on each constraint.

    A constraint is *infeasible as posed* where its multiplier has kept growing through the second half of training and
    its violation has not shrunk there: on a feasible problem a multiplier that is fed with violations for long enough
    makes them shrink. Too short a training, or too slow a dual line, can look the same, and the words say so.

    Args:
        values: at the end, over all training examples, or what stands for them.
        violations: likewise.
        told: what training told of each, in order.
        tolerance: the largest violation that counts as held.
        priced: those whose multiplier is what a looser bound would save, as it is where one multiplier is all there is.

    >>> rising = [Observation(0.5, 0.1 * t) for t in range(10)]
    >>> verdict = verdicts({'small': 0.5}, {'small': 0.5}, {'small': rising}, 0.01)['small']
    >>> verdict.holds, verdict.words
    (False, 'small does not hold: 0.5 too much (tolerance 0.01). Its multiplier grew from 0.5 halfway to 0.9, and
    the violation did not shrink (0.5, then 0.5): infeasible as posed, or contradicted by another constraint, unless
    the dual line is too slow')
    """
    return {
        name: _one(name, values[name], violations[name], told.get(name, ()), tolerance, name in priced)
        for name in values
    }


def _one(
    name: str, value: float, violation: float, told: Sequence[Observation], tolerance: float, priced: bool
) -> Verdict:
    multiplier = told[-1].multiplier if told else None
    if value != value:  # NaN: no example, of a group perhaps
        return Verdict(False, value, violation, multiplier, f'{name} is unknown: no example tells it')
    if violation <= tolerance:
        words = f'{name} holds{_price(value, multiplier, tolerance, priced)}'
        return Verdict(True, value, violation, multiplier, words)
    words = f'{name} does not hold: {violation:.3g} too much (tolerance {tolerance:g}). {_why(told)}'
    return Verdict(False, value, violation, multiplier, words)


def _price(value: float, multiplier: float | None, tolerance: float, priced: bool) -> str:
    """What a constraint costs that holds; an inequality alone can be far below 0 and hold."""
    if not multiplier:
        return f', with {-value:.3g} to spare; it costs nothing' if value < 0 else ''
    if value < -tolerance:
        return f', with {-value:.3g} to spare; its multiplier, {multiplier:.3g}, has not settled yet, and is no price'
    if not priced:
        return f'; the largest of its multipliers is {multiplier:.3g}'
    return f'; a bound looser by 1 would lower the loss at the rate of {abs(multiplier):.3g}'


def _why(told: Sequence[Observation]) -> str:
    """Why a constraint does not hold, from what training told in its second half."""
    known = [(v, m) for v, m in told if v is not None and m is not None]
    if len(known) < 4:
        return 'Too little was recorded to say why'
    if not any(multiplier for _, multiplier in known):
        return 'Its multiplier never moved from 0: nothing holds it'
    half, quarter = known[len(known) // 2 :], max(len(known) // 4, 1)
    before, after = (
        sum(violation for violation, _ in part) / quarter
        for part in (known[len(known) // 2 - quarter : len(known) // 2], known[-quarter:])
    )
    low, high = half[0][1], half[-1][1]
    seen = f'({before:.3g}, then {after:.3g})'
    if _keeps_growing([multiplier for _, multiplier in half]) and after > SHRINKS * before:
        return (
            f'Its multiplier grew from {low:.3g} halfway to {high:.3g}, and the violation did not shrink {seen}: '
            'infeasible as posed, or contradicted by another constraint, unless the dual line is too slow'
        )
    if after <= SHRINKS * before:
        return f'Its multiplier is {high:.3g}, and the violation still shrinks {seen}: train on'
    return (
        f'Its multiplier is {high:.3g}, and the violation swings {seen}: a smaller dual rate, or '
        'nupi(ki=..., kp=...), may settle it'
    )


def _keeps_growing(multipliers: Sequence[float]) -> bool:
    """Whether they end well above where they begin, in size, on one side of 0, and seldom turn back on the way."""
    one_side = min(multipliers) >= 0 or max(multipliers) <= 0
    sizes = [abs(multiplier) for multiplier in multipliers]
    rises = sum(b >= a for a, b in pairwise(sizes))
    return one_side and sizes[-1] > GROWS * sizes[0] and rises >= 0.8 * (len(sizes) - 1)
