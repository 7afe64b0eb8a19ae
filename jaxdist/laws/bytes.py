"""Laws on what an algorithm sends: measured in its traced program, promised by its paper's formula."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax

from jaxdist import ledger
from jaxdist.laws.law import Law, LawBroken
from jaxdist.laws.trial import Trial

Formula = Callable[[int, Any], Fraction]
"""`(workers, params) -> bytes` that one worker sends each time the algorithm speaks; of `params`, shapes count."""


def entries(params: Any) -> int:
    """How many numbers a pytree of arrays, or of shapes, holds.

    >>> entries({'w': jax.ShapeDtypeStruct((3, 4), 'float32'), 'b': jax.ShapeDtypeStruct((), 'float32')})
    13
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def sends(formula: Formula, every: int = 1) -> Law:
    """One worker sends exactly the formula's bytes, on every step or on one in `every`, and nothing on the others.

    >>> sends(lambda workers, params: Fraction(0)).name
    'sends the bytes of its formula'
    """
    often = '' if every == 1 else f', one step in {every}'
    return Law(f'sends the bytes of its formula{often}', sends_parts((formula, every)).check)


def sends_parts(*parts: tuple[Formula, int]) -> Law:
    """Of each part `(formula, every)` one worker sends the formula's bytes on one step in `every`; nothing else is
    sent.

    >>> sends_parts((lambda workers, params: Fraction(0), 2), (lambda workers, params: Fraction(8), 3)).name
    'sends the bytes of its formulas, one step in 2, 3'
    """

    def check(trial: Trial) -> None:
        sizes = {trial.axis: trial.count}
        program, first = trial.placed, trial.simulated.init
        rows = ledger.traced_step(
            program.step,
            program.state,
            trial.batch(0),
            sizes,
            4 * math.lcm(*(every for _, every in parts)),
            initial=first,
        )
        spoken = sum((row.bytes_when_run for row in rows), Fraction(0))
        each_step = sum((row.bytes_per_step or Fraction(0) for row in rows), Fraction(0))
        promised = [formula(trial.count, trial.start()) for formula, _ in parts]
        often = sum((sent / every for sent, (_, every) in zip(promised, parts, strict=True)), Fraction(0))
        if (spoken, each_step) != (sum(promised), often):
            raise LawBroken(
                f'{trial.count} workers with {entries(trial.start())} entries: one sends {spoken} bytes when it speaks '
                f'and {each_step} a step; promised {sum(promised)} and {often}'
            )

    return Law(f'sends the bytes of its formulas, one step in {", ".join(str(every) for _, every in parts)}', check)


def sends_nothing() -> Law:
    """Nothing crosses the worker axis.

    >>> sends_nothing().name
    'sends nothing'
    """
    return Law('sends nothing', sends(lambda workers, params: Fraction(0)).check)
