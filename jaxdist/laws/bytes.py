"""Laws on what an algorithm sends: measured in its traced program, promised by its paper's formula."""

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

    def check(trial: Trial) -> None:
        sizes = {trial.axis: trial.count}
        program, first = trial.placed, trial.simulated.init
        rows = ledger.traced_step(program.step, program.state, trial.batch(0), sizes, steps=4 * every, initial=first)
        spoken = sum((row.bytes_when_run for row in rows), Fraction(0))
        each_step = sum((row.bytes_per_step or Fraction(0) for row in rows), Fraction(0))
        promised = formula(trial.count, trial.start())
        if (spoken, each_step) != (promised, promised / every):
            raise LawBroken(
                f'{trial.count} workers with {entries(trial.start())} entries: one sends {spoken} bytes when it speaks '
                f'and {each_step} a step; promised {promised} and {promised / every}'
            )

    often = '' if every == 1 else f', one step in {every}'
    return Law(f'sends the bytes of its formula{often}', check)


def sends_nothing() -> Law:
    """Nothing crosses the worker axis.

    >>> sends_nothing().name
    'sends nothing'
    """
    return Law('sends nothing', sends(lambda workers, params: Fraction(0)).check)
