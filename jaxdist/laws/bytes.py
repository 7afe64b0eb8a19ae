"""Laws on the bytes that an algorithm sends: measured in its traced program, claimed by its paper's formula."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax

from jaxdist import ledger
from jaxdist.core.types import Params
from jaxdist.laws.law import Law, LawBroken
from jaxdist.laws.trial import Trial

Formula = Callable[[int, Any], Fraction]
"""`(workers, params) -> bytes` that one worker sends in each communication round; only the shapes of `params` count."""


def entries(params: Params) -> int:
    """The number of entries in a pytree of arrays, or of shapes.

    >>> entries({'w': jax.ShapeDtypeStruct((3, 4), 'float32'), 'b': jax.ShapeDtypeStruct((), 'float32')})
    13
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def sends(formula: Formula, every: int = 1) -> Law:
    """One worker sends exactly the formula's bytes at one step in `every`, and nothing at the other steps.

    >>> sends(lambda workers, params: Fraction(0)).name
    'sends the bytes of its formula'
    """
    frequency = '' if every == 1 else f', one step in {every}'
    return Law(f'sends the bytes of its formula{frequency}', sends_parts((formula, every)).check)


def sends_parts(*parts: tuple[Formula, int]) -> Law:
    """One worker sends, for each part `(formula, every)`, the formula's bytes at one step in `every`; nothing else.

    >>> sends_parts((lambda workers, params: Fraction(0), 2), (lambda workers, params: Fraction(8), 3)).name
    'sends the bytes of its formulas, one step in 2, 3'
    """

    def check(trial: Trial) -> None:
        sizes = {trial.axis: trial.count}
        program, initial = trial.on_mesh, trial.simulated.init
        # Frequencies are counted over a few whole periods of all parts.
        steps = 4 * math.lcm(*(every for _, every in parts))
        rows = ledger.traced_step(program.step, program.state, trial.batch(0), sizes, steps, initial=initial)
        when_run = sum((row.bytes_when_run for row in rows), Fraction(0))
        per_step = sum((row.bytes_per_step or Fraction(0) for row in rows), Fraction(0))
        expected = [formula(trial.count, trial.start()) for formula, _ in parts]
        expected_per_step = sum((sent / every for sent, (_, every) in zip(expected, parts, strict=True)), Fraction(0))
        if (when_run, per_step) != (sum(expected), expected_per_step):
            raise LawBroken(
                f'{trial.count} workers with {entries(trial.start())} entries: one sends {when_run} bytes when it '
                f'communicates and {per_step} a step; expected {sum(expected)} and {expected_per_step}'
            )

    return Law(f'sends the bytes of its formulas, one step in {", ".join(str(every) for _, every in parts)}', check)


def sends_nothing() -> Law:
    """Nothing is sent over the worker axis.

    >>> sends_nothing().name
    'sends nothing'
    """
    return Law('sends nothing', sends(lambda workers, params: Fraction(0)).check)
