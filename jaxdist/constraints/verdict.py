"""Whether constraints hold at the end, in plain words and with the evidence."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

GROWS = 1.2
"""A multiplier that is so much larger at the end than halfway has grown without an end in sight."""
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


class Told(NamedTuple):
    """A constraint at some step of training: its violation and its multiplier, None where unknown."""

    violation: float | None
    multiplier: float | None


def verdicts(
    values: Mapping[str, float], violations: Mapping[str, float], told: Mapping[str, Sequence[Told]], tolerance: float
) -> dict[str, Verdict]:
    """The verdict on each constraint.

    A constraint is *infeasible as posed* where its multiplier has grown through the second half of training and its
    violation has not shrunk there: on a feasible problem a multiplier that is fed with violations for long enough makes
    them shrink. Too short a training, or too slow a dual line, can look the same, and the words say so.

    Args:
        values: at the end, over all training examples, or what stands for them.
        violations: likewise.
        told: what training told of each, in order.
        tolerance: the largest violation that counts as held.

    >>> rising = [Told(0.5, 0.1 * t) for t in range(10)]
    >>> verdict = verdicts({'small': 0.5}, {'small': 0.5}, {'small': rising}, 0.01)['small']
    >>> verdict.holds, verdict.words
    (False, 'small does not hold: 0.5 too much (tolerance 0.01). Its multiplier grew from 0.4 halfway to 0.9, and
    the violation did not shrink (0.5, then 0.5): infeasible as posed, or contradicted by another constraint, unless
    the dual line is too slow')
    """
    return {name: _one(name, values[name], violations[name], told.get(name, ()), tolerance) for name in values}


def _one(name: str, value: float, violation: float, told: Sequence[Told], tolerance: float) -> Verdict:
    multiplier = told[-1].multiplier if told else None
    if value != value:  # NaN: no example, of a group perhaps
        return Verdict(False, value, violation, multiplier, f'{name} is unknown: no example tells it')
    if violation <= tolerance:
        return Verdict(True, value, violation, multiplier, f'{name} holds{_price(value, multiplier, tolerance)}')
    words = f'{name} does not hold: {violation:.3g} too much (tolerance {tolerance:g}). {_why(told)}'
    return Verdict(False, value, violation, multiplier, words)


def _price(value: float, multiplier: float | None, tolerance: float) -> str:
    """What a constraint costs that holds; an inequality alone can be far below 0 and hold."""
    if not multiplier:
        return f', with {-value:.3g} to spare; it costs nothing' if value < 0 else ''
    if value < -tolerance:
        return f', with {-value:.3g} to spare; its multiplier, {multiplier:.3g}, has not settled yet, and is no price'
    return f'; a bound looser by 1 would lower the loss at the rate of {abs(multiplier):.3g}'


def _why(told: Sequence[Told]) -> str:
    """Why a constraint does not hold, from what training told in its second half."""
    known = [one for one in told if one.violation is not None and one.multiplier is not None]
    if len(known) < 4:
        return 'Too little was recorded to say why'
    quarter = max(len(known) // 4, 1)
    middle, end = known[len(known) // 2 - quarter : len(known) // 2], known[-quarter:]
    before, after = (sum(one.violation or 0.0 for one in part) / quarter for part in (middle, end))
    low, high = (abs(part[-1].multiplier or 0.0) for part in (middle, end))
    moved = (
        f'Its multiplier grew from {low:.3g} halfway to {high:.3g}' if high > low else f'Its multiplier is {high:.3g}'
    )
    seen = f'({before:.3g}, then {after:.3g})'
    if high > GROWS * low and after > SHRINKS * before:
        return (
            f'{moved}, and the violation did not shrink {seen}: infeasible as posed, or contradicted by another '
            'constraint, unless the dual line is too slow'
        )
    if after <= SHRINKS * before:
        return f'{moved}, and the violation still shrinks {seen}: train on'
    return f'{moved}, and the violation swings {seen}: a smaller dual rate, or nupi(ki=..., kp=...), may settle it'
