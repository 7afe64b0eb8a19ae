"""All registered algorithms keep their laws; the basic ones for any shapes, dtypes, seeds and numbers of workers.

The tests read the registry, so a new algorithm is tested without being listed here.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import laws, line
from jaxdist.algorithms.mean import _residual
from jaxdist.core import registry
from jaxdist.laws import Law, LawBroken, LawResult, Trial, check

ENTRIES = registry.algorithms()
LINES = {text: claims for entry in ENTRIES.values() for text, claims in entry.examples.items()}
slow = pytest.mark.slow


def broken(results: list[LawResult]) -> dict[str, str]:
    return {result.law: result.problem for result in results if result.problem}


FIRST = {next(iter(entry.examples)) for entry in ENTRIES.values()} | set(ENTRIES['mean'].examples)
"""Lines that are also tested with one and with four workers: the first of each algorithm, and all of `mean`."""

QUICK = {text for text in FIRST if 'stochastic' not in text}

TRIALS = [
    pytest.param(text, count, marks=[slow] * (count != 3 or text not in QUICK))
    for text, claims in LINES.items()
    for count in (1, 3, 4)
    if laws.count_for(claims, count) == count and (count == 3 or text in FIRST)
]


@pytest.mark.parametrize('text, count', TRIALS)
def test_every_law_holds(text: str, count: int) -> None:
    """The axis has another name than usual, to find algorithms with a fixed axis name."""
    update = line.build(text, axis='replicas')
    assert broken(check(update, LINES[text], count, axis='replicas')) == {}


@slow
def test_every_law_holds_for_eight_workers() -> None:
    text = 'mean(codec=int8(), feedback=True)'
    assert broken(check(line.build(text), LINES[text], workers=8, seed=1)) == {}


@functools.cache
def trivial(update: str) -> Trial:
    """The trial of an optax transformation that is no distributed algorithm."""
    return Trial(getattr(optax, update)(), 3)


def breaks(law: Law, trial: Trial) -> bool:
    """Whether the trial breaks the law by its updates, and not because its state lacks what the law compares."""
    try:
        law.check(trial)
    except LawBroken:
        return True
    except (AttributeError, TypeError):
        pass
    return False


@pytest.mark.parametrize('update', ['identity', 'set_to_zero'])
@pytest.mark.parametrize('name', ENTRIES)
def test_the_claims_exclude_trivial_updates(name: str, update: str) -> None:
    """Among the claims of an algorithm's examples, a law on more than bytes is broken by a trivial update."""
    claims = (law for claims in ENTRIES[name].examples.values() for law in claims if not law.name.startswith('sends'))
    assert any(breaks(law, trivial(update)) for law in claims)


leaf = st.lists(st.integers(0, 6), max_size=2).map(tuple) | st.integers(7, 40).map(lambda n: (n,))
shapes = st.lists(leaf, min_size=1, max_size=3).map(lambda leaves: {f'leaf{i}': x for i, x in enumerate(leaves)})
"""Up to three leaves of up to 40 entries: scalars, empty leaves, sizes that no number of workers divides."""


def cases(*dtypes: Any, empty: bool = True) -> st.SearchStrategy[Any]:
    """Keyword arguments of a trial; `empty` allows trees without any entry."""
    return st.fixed_dictionaries(
        {
            'count': st.integers(1, 6),
            'shapes': shapes.filter(lambda leaves: empty or any(map(math.prod, leaves.values()))),
            'dtype': st.sampled_from(dtypes or (jnp.float32, jnp.bfloat16, jnp.float16)),
            'seed': st.integers(0, 2**32 - 1),
        }
    )


few = settings(max_examples=7, deadline=None, derandomize=True)


@slow
@few
@given(cases())
def test_an_exact_mean(case: Any) -> None:
    trial = Trial(line.build('mean()'), **case)
    laws.exact_mean().check(trial)
    laws.agrees().check(trial)


@slow
@few
@given(cases(empty=False), st.integers(1, 40))
def test_an_int8_mean_is_near(case: Any, block: int) -> None:
    """The error is at most half a quantisation step for each phase, plus the rounding of the updates' dtype."""
    trial = Trial(line.build(f'mean(codec=int8(block={block}))'), **case)
    laws.near_mean(1 / 127 + float(jnp.finfo(case['dtype']).eps)).check(trial)
    laws.agrees().check(trial)


@slow
@few
@given(cases(jnp.float32, empty=False), st.integers(1, 40), st.sampled_from(['nearest', 'stochastic']))
def test_feedback_is_conserved(case: Any, block: int, rounding: str) -> None:
    update = line.build(f'mean(codec=int8(block={block}, rounding={rounding!r}), feedback=True)')
    laws.conserves_feedback(_residual).check(Trial(update, **case))


@slow
@few
@given(cases(), st.integers(0, 7))
def test_a_delay(case: Any, steps: int) -> None:
    laws.delays(steps).check(Trial(line.build(f'delay(steps={steps})'), **case))


@slow
@few
@given(cases(), st.integers(1, 7))
def test_rounds(case: Any, every: int) -> None:
    laws.synchronises(every).check(Trial(line.build(f'average(every={every})'), **case))


@slow
@few
@given(cases(jnp.float32, empty=False), st.integers(1, 7), st.integers(1, 40))
def test_rounds_conserve_the_mean(case: Any, every: int, block: int) -> None:
    laws.conserves_mean().check(Trial(line.build(f'average(every={every})'), **case))
    compressed = line.build(f'average(every={every}, codec=int8(block={block}), feedback=True)')
    laws.conserves_mean(_residual).check(Trial(compressed, **case))
