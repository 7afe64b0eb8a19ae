"""Short texts of update lines: what lines have in common is left out, and no two lines get the same text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdist.algorithms
import jaxdist.codecs  # noqa: F401  registers the functions of the lines
from jaxdist.line import LineError, shorten
from jaxdist.line.shorten import OMITTED

OUTER = 'outer=sgd(0.7, momentum=0.5, nesterov=True)'


def test_transformations_that_most_lines_have_are_left_out() -> None:
    lines = ['mean() | adamw(3e-3)', 'average(every=10) | adamw(3e-3)', 'delay(4) | sgd(0.1)']
    assert shorten(lines) == ['mean()', 'average(every=10)', 'delay(4) | sgd(0.1)']


def test_a_line_that_lacks_one_of_them_still_loses_those_of_all_lines() -> None:
    lines = [f'delay({steps}) | mean() | sgd({rate})' for steps, rate in ((2, 0.1), (4, 0.1), (8, 0.1), (8, 0.05))]
    assert shorten(lines) == ['delay(2)', 'delay(4)', 'delay(8)', 'delay(8) | sgd(0.05)']


def test_a_line_of_common_transformations_is_empty() -> None:
    assert shorten(['mean() | sgd(0.1)', 'mean() | sgd(0.1)', 'mean() | clip(1.0) | sgd(0.1)']) == ['', '', 'clip(1.0)']


def test_long_lines_lose_the_arguments_on_which_calls_agree() -> None:
    lines = [
        f'diloco(every=10, {OUTER})',
        f'diloco(every=30, {OUTER})',
        f'diloco(every=30, {OUTER}, codec=int4())',
        f'diloco(every=90, {OUTER})',
        'diloco(every=30, outer=sgd(0.7, momentum=0.9, nesterov=True))',
        "diloco(every=30, outer=sgd(1.0), codec=top_k(k=9, block=4096, values=int2()), exchange='gather')",
        "diloco(every=30, outer=sgd(1.0), codec=top_k(k=41, block=4096, values=int2()), exchange='gather')",
        f'streaming_diloco(every=30, fragments=5, {OUTER}, overlap=1, mixing=0.5)',
        'mean()',
    ]
    assert shorten([f'adam(1e-3) | {line}' for line in lines]) == [
        'diloco(every=10, …)',
        'diloco(every=30, …)',
        'diloco(every=30, codec=int4(), …)',
        'diloco(every=90, …)',
        'diloco(every=30, outer=sgd(0.7, momentum=0.9, nesterov=True))',
        "diloco(every=30, outer=sgd(1.0), codec=top_k(k=9, …), exchange='gather')",
        "diloco(every=30, outer=sgd(1.0), codec=top_k(k=41, …), exchange='gather')",
        'streaming_diloco(…)',
        'mean()',
    ]


def test_an_argument_that_one_call_lacks_is_not_left_out() -> None:
    lines = [f'diloco(every={every}, {OUTER}, codec=top_k(k=9, block=4096))' for every in (1, 2, 3)]
    assert shorten([f'adam(1e-3) | {line}' for line in (*lines, f'diloco(every=4, {OUTER})')]) == [
        'diloco(every=1, codec=top_k(…), …)',
        'diloco(every=2, codec=top_k(…), …)',
        'diloco(every=3, codec=top_k(…), …)',
        'diloco(every=4, …)',
    ]


def test_a_text_that_two_lines_would_share_is_given_with_more_of_them() -> None:
    assert shorten(['clip(1.0) | sgd(0.1) | ema(0.9)', 'sgd(0.1) | clip(1.0) | ema(0.9)', 'sgd(0.1) | clip(1.0)']) == [
        'clip(1.0) | sgd(0.1) | ema(0.9)',
        'sgd(0.1) | clip(1.0) | ema(0.9)',
        'sgd(0.1) | clip(1.0)',
    ]


def test_a_mistake_is_refused() -> None:
    with pytest.raises(LineError, match='clip'):
        shorten(['clip(1.0)', 'clip(|'])


RATES = st.sampled_from(['0.1', '0.05', 'learning_rate=0.1', '0.7, momentum=0.9, nesterov=True'])
SGD = RATES.map(lambda rate: f'sgd({rate})')
CODECS = st.sampled_from(['int8()', 'int4()', 'top_k(k=4)', 'top_k(k=9, block=4096)', 'top_k(k=9, values=int2())'])
DILOCO = st.builds(
    lambda every, outer, codec: f'diloco(every={every}, outer={outer}' + (f', codec={codec})' if codec else ')'),
    st.sampled_from([1, 30]),
    SGD,
    st.none() | CODECS,
)
BEFORE = st.sampled_from(
    ['clip(1.0)', 'clip(2.0)', 'ema(0.9)', 'trace(0.9, nesterov=True)', 'add_decayed_weights(0.1)']
)
LINES = st.builds(
    lambda before, sync: ' | '.join([*before, sync]), st.lists(BEFORE, max_size=3), DILOCO | st.just('mean()')
)


@given(st.lists(LINES, min_size=1, max_size=8))
@settings(deadline=None)
def test_texts_are_equal_where_lines_are_and_shorter_than_them(lines: list[str]) -> None:
    texts = shorten(lines)
    shown = [text or line for text, line in zip(texts, lines, strict=True)]
    assert len(set(zip(shown, lines, strict=True))) == len(set(shown)) == len(set(lines))
    assert all(len(text) <= len(line) for text, line in zip(shown, lines, strict=True))


@given(st.lists(LINES, min_size=1, max_size=8))
@settings(deadline=None)
def test_a_text_has_nothing_that_its_line_lacks(lines: list[str]) -> None:
    for text, line in zip(shorten(lines), lines, strict=True):
        parts = [part for part in re.split(r'[(),|]\s*|\s+', text) if part and part != OMITTED]
        assert all(part in line for part in parts)
        assert text.count('(') == text.count(')')
