"""The update line: settings that change it, and its normal form with all defaults."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_fixtures import calls_of, check_mistake, registered

from jaxdist.core.collectives import AXIS
from jaxdist.line import override, spell


@pytest.fixture(scope='module', autouse=True)
def fixtures_registered() -> Iterator[None]:
    """The fixtures replace the registered functions until the end of this module."""
    with registered():
        yield


# Overriding keywords.

LINE = 'halve(bytes8(64), feedback=True) | sgd(1e-1) | keep(sgd(learning_rate=2e-1, ), inner=contrib.muon(0.5))'


@pytest.mark.parametrize(
    'change, old, new',
    [
        ('halve.feedback=False', 'feedback=True', 'feedback=False'),
        ('halve.codec=bytes8(block=2)', 'bytes8(64)', 'bytes8(block=2)'),
        ('bytes8.block = 128 ', '64', '128'),
        ("bytes8.rounding='a | b'", '64', "64, rounding='a | b'"),
        ('sgd[0].learning_rate=1e-3', '1e-1', '1e-3'),
        ('sgd[1].learning_rate=-1e-3', '2e-1', '-1e-3'),
        ('sgd[1].momentum=0.9', '2e-1, ', '2e-1, momentum=0.9'),
        ('keep.inner=clip(1.0) | sgd(0.7)', 'contrib.muon(0.5)', 'clip(1.0) | sgd(0.7)'),
        ('keep.inner=1, 2', 'contrib.muon(0.5)', '(1, 2)'),
        ('muon.learning_rate=1', '0.5', '1'),
        ('contrib.muon[0].learning_rate=1', '0.5', '1'),
    ],
)
def test_a_setting_changes_one_argument_and_no_other_character(change: str, old: str, new: str) -> None:
    assert LINE.count(old) == 1
    assert override(LINE, change) == LINE.replace(old, new)


def test_a_setting_fills_an_empty_call() -> None:
    assert override('halve( ) | adamw()', 'halve.codec=1', 'adamw.learning_rate=2') == (
        'halve(codec=1) | adamw(learning_rate=2)'
    )


def test_columns_are_characters_and_not_bytes() -> None:
    assert override("keep('ééé', inner='é') | sgd(0.1)", 'keep.inner=2') == "keep('ééé', inner=2) | sgd(0.1)"


def test_without_settings_the_line_is_checked() -> None:
    assert override(LINE) == LINE
    check_mistake('halve() | «adamw»()', 'adamw needs learning_rate', act=override)


@pytest.mark.parametrize(
    'marked, words',
    [
        ('«learning_rate=1»', 'a setting is call.keyword=value, as in adamw.learning_rate=1e-3'),
        ('«sgd.learning_rate»', 'a setting is call.keyword=value'),
        ('«sgd.learning_rate=»', 'a setting is call.keyword=value'),
        (
            '«sdg».learning_rate=1',
            "no call 'sdg': did you mean 'sgd'? (its calls are halve, bytes8, sgd, keep, con",
        ),
        ('«sgd».learning_rate=1', "calls 'sgd' 2 times: write sgd[0].learning_rate=... for the first"),
        ('«sgd[2]».learning_rate=1', "calls 'sgd' 2 times, and [0] is the first"),
        ('halve.codec=1«)» | sgd(2', "unmatched ')'"),
        ('halve.codec=bytes8(«blok»=1)', "did you mean 'block'?"),
        ('halve.codec=«x»', "a string needs quotes: 'x'"),
        ('halve.codec=1 «# one»', 'no comments'),
    ],
)
def test_a_mistake_in_a_setting_has_a_message_and_a_place(marked: str, words: str) -> None:
    check_mistake(marked, words, act=lambda setting: override(LINE, setting))


def test_an_unknown_keyword_is_shown_in_the_new_line() -> None:
    check_mistake(
        'sgd(0.1, «momentun»=0.9)',
        "sgd has no keyword 'momentun': did you mean 'momentum'?",
        act=lambda _: override('sgd(0.1)', 'sgd.momentun=0.9'),
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_a_setting_arrives_as_written(first: Any, second: Any) -> None:
    line = override("keep('é') | halve()", f'keep.value={first!r}', f'halve.codec={second!r}')
    assert calls_of(line) == [(first, (), AXIS), (second, False, AXIS)]


# Writing out defaults.


def test_defaults_of_registered_functions_are_spelled_out() -> None:
    assert spell('halve( bytes8(64) )|keep(clip(1.0)|sgd(1e-1)) | careful(b=2, a=1)') == (
        "halve(codec=bytes8(block=64, rounding='nearest', limit=1e309), feedback=False)"
        ' | keep(value=clip(1.0) | sgd(0.1), inner=()) | careful(steps=1, b=2, a=1)'
    )


def test_an_axis_is_spelled_out_where_the_line_gives_it() -> None:
    assert spell("halve(axis='pods')") == "halve(codec=None, feedback=False, axis='pods')"


@settings(deadline=None)
@given(VALUES, st.none() | VALUES)
def test_a_line_spelled_out_means_the_same(first: Any, second: Any) -> None:
    line = f'keep({first!r}, inner=bytes8(rounding={second!r})) | halve()'
    assert calls_of(spell(line)) == calls_of(line)
    assert spell(spell(line)) == spell(line)
