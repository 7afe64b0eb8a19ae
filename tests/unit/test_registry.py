"""The registry: which functions can be registered, and which function a name refers to."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import optax
import pytest

from jaxdist.core.registry import algorithm, algorithms, codec, codecs, find, names
from jaxdist.core.spelling import nearest
from jaxdist.laws import Law

CLAIM = Law('claim', print)


def halve(codec: Any = None, *, limit: float = float('inf')) -> optax.GradientTransformation:
    """Halves every update.

    More words.
    """
    return optax.scale(0.5)


def double() -> optax.GradientTransformation:
    return optax.scale(2.0)


def plain(block: int = 256) -> int:
    """Sends float32."""
    return block


@pytest.fixture(autouse=True)
def fixtures() -> Iterator[None]:
    """Replaces the registry by two algorithms and a codec during a test."""
    with mock.patch.dict('jaxdist.core.registry._ENTRIES', clear=True):
        assert algorithm(paper='none', examples={'halve()': (CLAIM,)})(halve) is halve
        assert algorithm(paper='other', examples={'double()': ()})(double) is double
        assert codec(paper='none', examples={'plain()': ()})(plain) is plain
        yield


def test_the_entry_of_a_registered_function() -> None:
    entry = algorithms()['halve']
    assert (entry.name, entry.kind, entry.make, entry.paper) == ('halve', 'algorithm', halve, 'none')
    assert entry.examples == {'halve()': (CLAIM,)}
    assert entry.summary == 'Halves every update.'
    assert algorithms()['double'].summary == ''


def test_algorithms_and_codecs_are_separate_and_sorted() -> None:
    assert list(algorithms()) == ['double', 'halve']
    assert list(codecs()) == ['plain']
    assert names()[:3] == ['double', 'halve', 'plain']


def test_an_entry_needs_an_example() -> None:
    with pytest.raises(ValueError, match=r"codec 'plain' needs at least one example"):
        codec(paper='none', examples={})(plain)


def test_a_module_may_register_a_name_again() -> None:
    algorithm(paper='again', examples={'halve()': ()})(halve)
    assert algorithms()['halve'].paper == 'again'


def test_a_name_belongs_to_one_module_and_one_kind() -> None:
    with pytest.raises(ValueError, match=rf"codec 'halve' of {__name__}: the algorithm of {__name__}"):
        codec(paper='none', examples={'halve()': ()})(halve)

    def stranger() -> Any:
        return None

    stranger.__name__, stranger.__module__ = 'plain', 'elsewhere'
    with pytest.raises(ValueError, match=rf"codec 'plain' of elsewhere: the codec of {__name__} has"):
        codec(paper='none', examples={'plain()': ()})(stranger)
    assert codecs()['plain'].make is plain


def test_parameters_that_a_line_cannot_give_are_refused() -> None:
    def many(*parts: Any) -> Any:
        return parts

    def nameless(x: int, /) -> Any:
        return x

    def unwritable(inner: Any = double()) -> Any:
        return inner

    for function, problem in (
        (many, r'many\(\*parts.*\): .* needs a name'),
        (nameless, r'nameless\(x.*\): .* needs a name'),
        (unwritable, r'unwritable\(inner=.*\): a line cannot write this default'),
    ):
        with pytest.raises(ValueError, match=problem):
            algorithm(paper='none', examples={'x()': ()})(function)
        assert function.__name__ not in algorithms()


def test_registered_names_hide_those_of_optax() -> None:
    def adamw() -> Any:
        return None

    assert find('adamw') is optax.adamw
    algorithm(paper='none', examples={'adamw()': ()})(adamw)
    assert find('adamw') is algorithms()['adamw']
    assert find('optax.adamw') is optax.adamw
    assert names().count('adamw') == 1


def test_names_of_contrib() -> None:
    assert find('contrib.muon') is optax.contrib.muon
    assert find('optax.contrib.muon') is optax.contrib.muon


@pytest.mark.parametrize(
    'name', ['', 'nothing', 'muon', 'contrib', 'losses', 'GradientTransformation', '__name__', 'jax.nn.relu']
)
def test_other_names_are_not_found(name: str) -> None:
    assert find(name) is None
    assert name not in names()


@pytest.mark.parametrize(
    'name, first',
    [('muon', 'contrib.muon'), ('AdamW', 'adamw'), ('havle', 'halve'), ('cosine', 'cosine_decay_schedule')],
)
def test_a_similar_name(name: str, first: str) -> None:
    assert nearest(name, names())[0] == first


def test_no_similar_name() -> None:
    assert nearest('zzzzzz', names()) == []
