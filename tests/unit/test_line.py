"""The update line: what it builds, and the error message of each mistake."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from line_fixtures import CALLS, calls_of, check_mistake, registered

from jaxdist.core.collectives import AXIS
from jaxdist.line import LineError, build, build_codec


@pytest.fixture(scope='module', autouse=True)
def fixtures_registered() -> Iterator[None]:
    """The fixtures replace the registered functions until the end of this module."""
    with registered():
        yield


# Building.


def run(update: optax.GradientTransformation, steps: int = 3) -> Any:
    params = {'a': np.linspace(-1, 1, 3, dtype=np.float32), 'b': np.ones((2, 2), np.float32)}
    state = update.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda p, step=step: 5 * p + step, params)
        updates, state = update.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    'line, in_python',
    [
        ('sgd(0.1)', optax.sgd(0.1)),
        ('optax.sgd(0.1, momentum=0.9)', optax.sgd(0.1, momentum=0.9)),
        ('halve() | clip(1.0) | adamw(1e-2)',
         optax.chain(optax.scale(0.5), optax.clip(1.0), optax.adamw(1e-2))),
        (' clip(1.0)\n | (sgd(0.1) | halve()) ',
         optax.chain(optax.clip(1.0), optax.sgd(0.1), optax.scale(0.5))),
        ('sgd(cosine_decay_schedule(0.1, 10))', optax.sgd(optax.cosine_decay_schedule(0.1, 10))),
        ('apply_if_finite(clip(1.0) | sgd(0.1), 2)',
         optax.apply_if_finite(optax.chain(optax.clip(1.0), optax.sgd(0.1)), 2)),
        ('contrib.muon(learning_rate=0.1)', optax.contrib.muon(learning_rate=0.1)),
        ("partition({'x': sgd(0.1), 'y': adam(0.1)}, {'a': 'x', 'b': 'y'})",
         optax.partition({'x': optax.sgd(0.1), 'y': optax.adam(0.1)}, {'a': 'x', 'b': 'y'})),
        ('MultiSteps(sgd(0.1), 2)', optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
    ],
)  # fmt: skip
def test_a_line_equals_the_chain_of_optax(line: str, in_python: optax.GradientTransformation) -> None:
    built = build(line)
    assert isinstance(built, optax.GradientTransformationExtraArgs)
    got, expected = run(built), run(in_python)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_arguments_are_passed_as_written() -> None:
    line = "keep((-1, +2.5e-3, [None, {'k': True}], 'a | b'))"
    assert calls_of(f'{line} | halve(bytes8(64), feedback=True) | careful(other=3)') == [
        ((-1, 0.0025, [None, {'k': True}], 'a | b'), (), AXIS),
        ((64, 'nearest', float('inf')), True, AXIS),
        (1, {'other': 3}),
    ]


def test_the_axis_is_filled_in_unless_the_line_gives_it() -> None:
    calls = calls_of("halve() | keep(1, inner=halve()) | halve(axis='pods')", axis='w')
    assert [call[-1] for call in calls] == ['w', 'w', 'w', 'pods']


def test_a_chain_may_be_an_argument() -> None:
    ((inner, _, _),) = calls_of('keep(clip(1.0) | sgd(0.5))')
    updates, _ = inner.update({'w': -5.0}, inner.init({'w': 0.0}))
    assert updates['w'] == 0.5


def test_a_codec_can_be_built_without_a_line() -> None:
    assert build_codec("bytes8(64, rounding='up')") == (64, 'up', float('inf'))
    check_mistake('«halve»()', 'not a codec', act=build_codec)
    check_mistake('«1»', 'not a codec', act=build_codec)
    check_mistake('«halve() | halve()»', 'not a codec', act=build_codec)
    check_mistake('bytes8(«blok»=1)', "did you mean 'block'?", act=build_codec)


# Mistakes.


@pytest.mark.parametrize(
    'marked, words',
    [
        # Not a line.
        ('halve( «|» sgd(0.1)', 'transformations are joined by |'),
        ('halve() |«»', 'transformations are joined by |'),
        ("halve('é') «s»gd(0.1)", 'transformations are joined by |'),
        ('halve() «# | sgd(0.1)»', 'no comments'),
        ('halve() «or» sgd(0.1)', "'or' does not join transformations: transformations are joined by "
         '|, as in mean() | adamw('),
        ('(halve()) «+» sgd(0.1) | sgd(0.2)', "'+' does not join transformations"),
        ('halve()«,» sgd(0.1)', "',' does not join transformations"),
        ('halve() | sgd(0.1) «>» sgd(0.1)', "'>' does not join transformations"),
        ('keep(halve() «and» halve())', "'and' does not join transformations"),
        ('halve() | «5»', 'a transformation is a call'),
        ('«lambda: halve()»', 'a transformation is a call'),
        # Names.
        ('«adamww»(0.1)', "'adamww' is neither registered nor in optax: did you mean 'adamw' or "),
        ('halve() | «havle»()', "'havle' is neither registered nor in optax: did you mean 'halve'"),
        ('halve(codec=«bytes»(3))', "'bytes8'"),
        ('«muon»(0.1)', "'contrib.muon'"),
        ('«jax.nn.relu»()', "'jax.nn.relu' is neither"),
        ('«os.system»(1)', "'os.system' is neither"),
        ('«halve()»()', 'only a name can be called'),
        ('«halve» | sgd(0.1)', "'halve' is not called: write halve()"),
        ('halve() | «optax.adamw»', 'write optax.adamw(learning_rate=...)'),
        ('halve(codec=«bytes8»)', 'write bytes8()'),
        ('halve(feedback=«true»)', "did you mean 'True'"),
        ('halve(codec=«up»)', "a string needs quotes: 'up'"),
        # Arguments.
        ('halve(bytes8(«blok»=2)) | sgd(0.1)', "bytes8 has no keyword 'blok': did you mean 'block'?"),
        ("halve(codec='é', «feedbak»=True)", "'feedback'? (it takes codec, feedback, axis)"),
        ('adamw(«lr»=0.1)', "adamw has no keyword 'lr': did you mean 'learning_rate'? (it takes learning_rate, b1, b2"),
        ('halve(None, «True»)', 'halve takes 1 argument by position, and this is one more (it takes codec'),
        ('keep(1, 2, «3», 4)', 'keep takes 2 arguments by position'),
        ('careful(\t«3»)', 'careful takes no arguments by position'),
        ('set_to_zero(«1»)', 'it takes nothing'),
        ('halve() | «adamw»()', 'adamw needs learning_rate'),
        ('«keep»()', 'keep needs value (it takes value, inner, axis)'),
        ('sgd(0.1, «learning_rate»=0.2)', "sgd is given 'learning_rate' twice"),
        ('sgd(learning_rate=0.1, «learning_rate»=0.2)', "sgd is given 'learning_rate' twice"),
        ('sgd(«*[0.1]»)', 'a starred argument is not allowed'),
        ("sgd(«**»{'learning_rate': 0.1})", 'a starred argument is not allowed'),
        # Values.
        ('sgd(«2 * 3»)', 'arithmetic is not allowed: a value is a number'),
        ('sgd(«not 3»)', 'arithmetic'),
        ('sgd(«-True»)', 'arithmetic'),
        ('sgd(«lambda step: 0.1»)', 'a lambda'),
        ("sgd(«f'{1}'»)", 'an f-string'),
        ('sgd(«1 < 2»)', 'a comparison'),
        ('sgd(«1 if 2 else 3»)', 'a condition'),
        ('sgd(«[1][0]»)', 'a subscript'),
        ("sgd(«''.join»)", 'an attribute'),
        ('sgd(«True and 1»)', 'a logical expression'),
        ("sgd(«b'1'»)", 'this is not allowed'),
        ('sgd(«2j»)', 'this is not allowed'),
        ('sgd(«{1, 2}»)', 'this is not allowed'),
        ('sgd(«[x for x in ()]»)', 'this is not allowed'),
        ('keep([1, «*y»])', 'a starred argument'),
        ('keep({«halve»(): 1})', 'a key of a dict'),
        ('keep({**«halve»()})', 'a key of a dict'),
        ("keep({'a': 1, «'a'»: 2})", "key 'a' is given twice"),
        ('keep((1, {1: «2 + 3»}))', 'arithmetic'),
        # Calls that are no transformations.
        ('«bytes8»() | adamw(0.1)', 'bytes8 is a codec: give it to an algorithm, as in mean(codec=bytes8())'),
        ('keep(halve() | «bytes8»())', 'bytes8 is a codec'),
        ('«constant_schedule»(1.0)', 'this is a schedule, not a transformation; give it to an optimiser, as in '
         'adamw(learning_rate=constant_schedule(1.0))'),
        ('halve() | «number»()', 'this is of type int, not a transformation'),
        # Calls that raise.
        ('halve() | «careful»(steps=0)', 'careful(...) raised ValueError: steps=0 must be 1 or more'),
        ('keep(«chain»(1.0))', 'chain(...) raised '),
    ],
)  # fmt: skip
def test_a_mistake_has_a_message_and_a_place(marked: str, words: str) -> None:
    check_mistake(marked, words)


def test_an_error_of_a_function_is_the_cause() -> None:
    with pytest.raises(LineError) as caught:
        build('careful(steps=0)')
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize('line', ['', '  ', '\n'])
def test_an_empty_line(line: str) -> None:
    with pytest.raises(LineError, match='the line is empty'):
        build(line)


def test_nothing_is_called_before_the_whole_line_is_checked() -> None:
    CALLS.clear()
    check_mistake('halve() | «nothing»()', 'neither')
    assert CALLS == []


PIECES = [*'()|,="\'[]{}.#\\\n é-*:0', 'halve()', 'keep(1)', 'sgd', 'value', '(1)']


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(''.join) | st.text(max_size=12))
@example('9' * 5000)
@example('-' * 5000 + '1')
@example('keep("\\d")')
@example('keep("\x00")')
@example('keep("\ud800")')
def test_any_text_is_built_or_is_a_line_error(text: str) -> None:
    built, error = None, None
    try:
        built = build(text)
    except LineError as mistake:
        error = mistake
    assert isinstance(built, optax.GradientTransformationExtraArgs) or error
    assert error is None or 0 <= error.column <= len(error.line)
