"""Builds the optax transformation that an update line describes."""

import ast
import re
from typing import Any

import optax

from jaxdist.core.collectives import AXIS
from jaxdist.line.builder import Builder
from jaxdist.line.calls import dotted, kind_of, transformations
from jaxdist.line.order import check_last, check_order
from jaxdist.line.reader import LineError, Reader


def build(line: str, axis: str = AXIS) -> optax.GradientTransformationExtraArgs:
    """The optax transformation that a line describes.

    The line `a(k=v) | b(c(x=1))` means `optax.chain(a(k=v), b(c(x=1)))`; a single transformation is not put into a
    chain. Names refer to the registry first, then to optax.

    Args:
        line: the update line.
        axis: the worker axis, for registered functions with a parameter `axis` that the line does not give.

    Raises:
        LineError: the line has a mistake; the message shows its place in the line and similar names.

    >>> update = build('clip(1.0) | sgd(learning_rate=0.5)')
    >>> updates, _ = update.update({'w': -5.0}, update.init({'w': 0.0}))
    >>> float(updates['w'])
    0.5
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    check_order(reader)
    return Builder(reader, axis).chain(reader.body)


def split_last(line: str, axis: str = AXIS) -> tuple[str, str, dict[str, Any]]:
    """The line before its last transformation, the last one's name, and all of its arguments by name.

    Args:
        line: the update line.
        axis: the worker axis, as in `build`.

    Raises:
        LineError: as in `build`.

    >>> before, name, arguments = split_last('clip(1.0) | sgd(0.5)')
    >>> before, name, arguments['learning_rate'], arguments['momentum']
    ('clip(1.0)', 'sgd', 0.5, None)
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    check_order(reader)
    *before, last = transformations(reader.body)
    assert isinstance(last, ast.Call)
    call, builder = reader.call(last), Builder(reader, axis)
    defaults = {name: p.default for name, p in call.parameters.items() if p.default is not p.empty}
    given = {name: builder.value(value) for name, value in call.given.items()}
    return ' | '.join(map(ast.unparse, before)), call.name, defaults | given


def split_first(line: str) -> tuple[str, str]:
    """The first transformation of a line, and the rest; '' if there is none.

    Raises:
        LineError: as in `build`.

    >>> split_first('mean() | clip(1.0)|sgd(0.5)'), split_first('sgd(0.5)')
    (('mean()', 'clip(1.0) | sgd(0.5)'), ('sgd(0.5)', ''))
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    first, *rest = map(ast.unparse, transformations(reader.body))
    return first, ' | '.join(rest)


def build_codec(line: str, axis: str = AXIS) -> Any:
    """The codec that a line such as `int8(block=64)` describes.

    Raises:
        LineError: the line has a mistake, or is not the call of one codec.

    >>> build_codec('sgd(0.1)')
    Traceback (most recent call last):
    jaxdist.line.reader.LineError: this is not a codec: write the call of one, as in int8(block=64)
        sgd(0.1)
        ^^^
    """
    reader = Reader(line)
    reader.check_value(reader.body)
    if kind_of(reader.body) != 'codec':
        raise reader.error('this is not a codec: write the call of one, as in int8(block=64)', reader.body)
    return Builder(reader, axis).value(reader.body)


def build_dual(line: str) -> optax.GradientTransformationExtraArgs:
    """The optax transformation that a dual line describes; it may have registered duals and functions of optax.

    Raises:
        LineError: the line has a mistake, or a transformation that belongs in an update line.

    >>> build_dual('mean() | sgd(0.1)')
    Traceback (most recent call last):
    jaxdist.line.reader.LineError: mean works on gradients or parameters: it belongs in the update line
        mean() | sgd(0.1)
        ^^^^
    """
    reader = Reader(line, 'dual')
    reader.check_chain(reader.body)
    check_last(reader)
    return Builder(reader, AXIS).chain(reader.body)


def build_value(text: str) -> Any:
    """The value of a text such as `0.5` or `linear_schedule(0.0, 1.0, 100)`: a constant, or the result of a call.

    Raises:
        LineError: the text has a mistake.

    >>> build_value('0.5')
    0.5
    """
    reader = Reader(text)
    reader.check_value(reader.body)
    return Builder(reader, AXIS).value(reader.body)


def build_compute_time(text: str) -> Any:
    """The compute time that a text such as `lognormal(mean=0.05)` describes.

    Raises:
        LineError: the text has a mistake, or is not the call of one compute time.

    >>> build_compute_time('sgd(0.1)')
    Traceback (most recent call last):
    jaxdist.line.reader.LineError: this is not a compute time: write the call of one, as in lognormal(mean=0.05)
        sgd(0.1)
        ^^^
    """
    reader = Reader(text)
    reader.check_value(reader.body)
    if kind_of(reader.body) != 'compute time':
        problem = 'this is not a compute time: write the call of one, as in lognormal(mean=0.05)'
        raise reader.error(problem, reader.body)
    return Builder(reader, AXIS).value(reader.body)


def arguments_of(line: str, parameter: str, axis: str = AXIS) -> list[tuple[str, Any]]:
    """The registered functions that a line calls with this parameter, and its value in each call; nothing is built.

    Raises:
        LineError: the line has a mistake.

    >>> arguments_of('sgd(0.1) | average(every=10)', 'every')
    [('average', 10)]
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    builder = Builder(reader, axis)
    calls = [reader.call(node) for node in ast.walk(reader.body) if isinstance(node, ast.Call)]
    return [
        (
            call.name,
            builder.value(given) if (given := call.given.get(parameter)) else call.parameters[parameter].default,
        )
        for call in calls
        if call.registered and parameter in call.parameters
    ]


def check_constraint(text: str) -> tuple[str, str]:
    """The name and the call of a constraint's text, `call(...)` or `name: call(...)`; nothing is called.

    Raises:
        LineError: the text has a mistake, or is not the call of one registered constraint.

    >>> check_constraint('sgd(0.1)')
    Traceback (most recent call last):
    jaxdist.line.reader.LineError: this is not a constraint: write the call of one, as in squared_norm(bound=1.0), or
    small: squared_norm(bound=1.0) to name it
        sgd(0.1)
        ^^^
    """
    named = re.fullmatch(r'\s*(?P<name>[^():]*?)\s*:(?P<call>.*)', text, re.DOTALL)
    if named and not named['name'].isidentifier():
        problem = f'{named["name"]!r} cannot name a constraint: use letters, digits and _'
        raise LineError(problem, text, 0, max(len(named['name']), 1))
    reader = Reader(named['call'] if named else text)
    reader.check_value(reader.body)
    if kind_of(reader.body) != 'constraint':
        raise reader.error(
            'this is not a constraint: write the call of one, as in squared_norm(bound=1.0), or '
            'small: squared_norm(bound=1.0) to name it',
            reader.body,
        )
    assert isinstance(reader.body, ast.Call)
    return named['name'] if named else dotted(reader.body.func), reader.text


def build_constraint(text: str, model: Any) -> Any:
    """The constraint that a text describes.

    Args:
        text: `call(...)` or `name: call(...)`; the name is ignored, `check_constraint` returns it.
        model: the value of a parameter called `model`.

    Raises:
        LineError: the text has a mistake.

    >>> build_constraint('squared_norm(bound=1.0)', None).kind
    'inequality'
    """
    reader = Reader(check_constraint(text)[1])
    return Builder(reader, AXIS, model).value(reader.body)
