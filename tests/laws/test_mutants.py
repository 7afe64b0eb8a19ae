"""Every mutant breaks a law that the original line claims, or a universal law.

The universal laws find 8 of the 51 mutants; without claims 43 would pass. `pytest -s` prints the laws that each breaks.
"""

from collections.abc import Iterable
from typing import Any

import pytest
from mutants import ALGORITHMS, CODECS, ORIGINALS, Mutant

from jaxdist.core import registry
from jaxdist.laws import CodecTrial, Law, LawBroken, Trial, check_law, universal, universal_codec

MUTANTS = ALGORITHMS + CODECS
slow = pytest.mark.slow


def some_slow(cases: Iterable[Any]) -> list[Any]:
    """Marks three of four cases as slow, and those with random numbers or feedback, which take longest to compile."""
    quick = lambda i, case: i % 4 == 0 and 'stochastic' not in str(case) and 'feedback' not in str(case)  # noqa: E731
    return [pytest.param(case, marks=[slow] * (not quick(i, case)), id=str(case)) for i, case in enumerate(cases)]


def is_codec(line: str) -> bool:
    return line.partition('(')[0] in registry.codecs()


def claims(line: str) -> tuple[Law, ...]:
    """The laws that the line claims in the registry."""
    entries = {**registry.algorithms(), **registry.codecs()}
    return tuple(entries[line.partition('(')[0]].examples[line])


def universal_laws(line: str) -> tuple[Law, ...]:
    return universal_codec() if is_codec(line) else universal()


def trial_of(line: str, subject: Any) -> Trial | CodecTrial:
    return CodecTrial(subject) if is_codec(line) else Trial(subject)


def broken(laws: tuple[Law, ...], trial: Trial | CodecTrial) -> dict[str, str]:
    """The laws that do not hold: name -> problem."""
    return {result.law: result.problem for law in laws if (result := check_law(law, trial)).problem}


@pytest.mark.parametrize('line', some_slow(ORIGINALS))
def test_the_original_keeps_its_claims_and_the_universal_laws(line: str) -> None:
    assert broken(claims(line) + universal_laws(line), trial_of(line, ORIGINALS[line]())) == {}


@pytest.mark.parametrize('mutant', some_slow(MUTANTS))
def test_a_mutant_breaks_its_law(mutant: Mutant) -> None:
    """It breaks the expected law, and by its values, not by an error that it raises; few break universal laws."""
    trial = trial_of(mutant.line, mutant.make())  # compiled once for all laws
    claimed, universals = claims(mutant.line), universal_laws(mutant.line)
    problems, general = broken(claimed, trial), broken(universals, trial)
    print(f'{mutant.line:55} {mutant.name:45}', *problems, *general, sep=' | ')  # noqa: T201 (the table of `pytest -s`)
    law = next(law for law in claimed + universals * mutant.universal if law.name == mutant.law)
    with pytest.raises(LawBroken):
        law.check(trial)
    assert bool(general) == mutant.universal


def test_the_numbers_of_mutants_in_the_docstrings() -> None:
    assert (len(MUTANTS), sum(mutant.universal for mutant in MUTANTS)) == (51, 8)
