"""Algorithms and a codec that remember how a line called them, and what tests of lines assert with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import optax
import pytest

from jaxdist.line import LineError, build
from jaxdist.core.registry import algorithm, codec
from jaxdist.core.collectives import AXIS

SEEN: list[Any] = []
Update = optax.GradientTransformation


def halve(codec: Any = None, *, feedback: bool = False, axis: str = 'nowhere') -> Update:
    SEEN.append((codec, feedback, axis))
    return optax.scale(0.5)


def keep(value: Any, inner: Any = (), *, axis: str) -> Update:
    SEEN.append((value, inner, axis))
    return optax.identity()


def careful(*, steps: int = 1, **rest: int) -> Update:
    if steps < 1:
        raise ValueError(f'steps={steps} must be 1 or more')
    SEEN.append((steps, rest))
    return optax.identity()


def number() -> int:
    return 3


def bytes8(block: int = 256, rounding: str = 'nearest', limit: float = float('inf')) -> tuple[Any, ...]:
    return block, rounding, limit


@contextmanager
def registered() -> Iterator[None]:
    """Instead of what is registered: four algorithms and a codec."""
    with mock.patch.dict('jaxdist.core.registry._ENTRIES', clear=True):
        for function in (keep, halve, careful, number):
            algorithm(paper='none', examples={f'{function.__name__}()': ('claim',)})(function)
        codec(paper='none', examples={'bytes8()': ()})(bytes8)
        yield


def seen(line: str, axis: str = AXIS) -> list[Any]:
    """What the toys were called with when the line was built, in the order of the calls."""
    SEEN.clear()
    build(line, axis)
    return list(SEEN)


def check_mistake(marked: str, words: str, act: Callable[[str], Any] = build) -> None:
    """Asserts that the line, without its «», fails with these words and carets between the «»."""
    line = marked.replace('«', '').replace('»', '')
    column = marked.index('«')
    with pytest.raises(LineError) as caught:
        act(line)
    problem, shown, carets = str(caught.value).rsplit('\n', 2)
    assert shown == f'    {line}'
    before = len(f'    {line[:column]}'.expandtabs())
    width = max(marked.index('»') - column - 1, 1)
    assert carets.expandtabs() == ' ' * before + '^' * width
    assert caught.value.column == column
    assert words in problem
