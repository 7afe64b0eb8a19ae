"""Planted defects, every one caught: by a law that the honest line claims, or by one for everybody.

The laws for everybody see 6 of the 50; without claims 44 would pass. `pytest -s` prints which laws saw which defect.
"""

import functools
from collections.abc import Iterable
from typing import Any

import pytest
from mutants import ALGORITHMS, CODECS, HONEST, Defect

from jaxdist.core import registry
from jaxdist.laws import CodecTrial, Law, LawBroken, Trial, check_law, universal, universal_codec

DEFECTS = ALGORITHMS + CODECS
slow = pytest.mark.slow


def some_slow(cases: Iterable[Any]) -> list[Any]:
    """The cases, those with random numbers or feedback marked slow: these take the longest to compile."""
    return [
        pytest.param(case, marks=[slow] * ('stochastic' in str(case) or 'feedback' in str(case)), id=str(case))
        for case in cases
    ]


def is_codec(line: str) -> bool:
    return line.partition('(')[0] in registry.codecs()


def claims(line: str) -> tuple[Law, ...]:
    """What the registry says that the line claims."""
    entries = {**registry.algorithms(), **registry.codecs()}
    return tuple(entries[line.partition('(')[0]].examples[line])


def everybodys(line: str) -> tuple[Law, ...]:
    return universal_codec() if is_codec(line) else universal()


def on_trial(line: str, made: Any) -> Trial | CodecTrial:
    return CodecTrial(made) if is_codec(line) else Trial(made)


@functools.cache
def tried(defect: Defect) -> Trial | CodecTrial:
    """The defect on trial: compiled once for all laws and tests."""
    return on_trial(defect.line, defect.make())


def broken(suspects: tuple[Law, ...], trial: Trial | CodecTrial) -> dict[str, str]:
    """The problems by the names of the laws that have one."""
    return {v.law: v.problem for law in suspects if (v := check_law(law, trial)).problem}


@pytest.mark.parametrize('line', some_slow(HONEST))
def test_the_honest_toy_keeps_what_is_claimed(line: str) -> None:
    assert broken(claims(line), on_trial(line, HONEST[line]())) == {}


@pytest.mark.parametrize('defect', some_slow(DEFECTS))
def test_a_defect_is_caught(defect: Defect) -> None:
    """By the law that was meant to, for what it does and not because it crashed."""
    suspects = claims(defect.line) + everybodys(defect.line) * defect.universal
    seen = broken(suspects, tried(defect))
    print(f'{defect.line:55} {defect.name:45}', *seen, sep=' | ')  # noqa: T201 (the table of `pytest -s`)
    law = next(law for law in suspects if law.name == defect.law)
    with pytest.raises(LawBroken):
        law.check(tried(defect))


@slow
@pytest.mark.parametrize('line', HONEST)
def test_the_honest_toy_keeps_the_laws_for_everybody(line: str) -> None:
    assert broken(everybodys(line), on_trial(line, HONEST[line]())) == {}


@slow
@pytest.mark.parametrize('defect', DEFECTS, ids=str)
def test_the_laws_for_everybody_see_few(defect: Defect) -> None:
    """6 of 50: what an algorithm claims is what finds a defect in it."""
    assert bool(broken(everybodys(defect.line), tried(defect))) == defect.universal


def test_the_count_of_defects_is_the_one_told() -> None:
    assert (len(DEFECTS), sum(defect.universal for defect in DEFECTS)) == (50, 6)
