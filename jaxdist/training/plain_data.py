"""Dataclasses of settings as JSON data and back: jaxdist's by their name, a user's by the file that defines them."""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from jaxdist import data as data_sets
from jaxdist import models
from jaxdist.core.errors import InputError
from jaxdist.core.spelling import nearest
from jaxdist.core.types import Model
from jaxdist.training.user_code import ScriptError, find_class, source_of


class ExperimentError(InputError):
    """An experiment that cannot be read or run; the message names the file or field, and what is wrong with it."""


FORMER_KINDS = {'Constraints': 'ConstraintSettings'}
"""Former names of kinds, in experiments that were saved by earlier versions, and their names now."""

OURS: dict[str, type] = {
    name: x
    for package in (models, data_sets)
    for name, x in vars(package).items()
    if isinstance(x, type) and dataclasses.is_dataclass(x)
}
"""jaxdist's own models, data sets and divisions, by name."""

RESERVED = ('kind', 'from')
"""Names under which JSON data have a dataclass's name and place, which no field may have."""


def check_settings(name: str, value: Any, method: str, result: str) -> None:
    """Checks that a value can be the model or the data of an experiment.

    Args:
        name: the field's name.
        value: its value.
        method: the method that it needs, with its arguments.
        result: what the method returns.

    Raises:
        ExperimentError: it is no dataclass with this method, or a field of it cannot be written as JSON.

    >>> check_settings('model', models.Perceptron, 'build(task)', 'Model')
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: model=Perceptron is a class: write Perceptron(...), which has values
    """
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    if isinstance(value, type):
        raise ExperimentError(f'{name}={kind} is a class: write {kind}(...), which has values')
    if isinstance(value, Model):
        raise ExperimentError(
            f'{name} is a Model: write a dataclass of settings, whose method {method} returns it, as in '
            'docs/your_model.md'
        )
    if not dataclasses.is_dataclass(value) or not callable(getattr(value, method.partition('(')[0], None)):
        raise ExperimentError(
            f'{name}={value!r} must be a dataclass with a method {method} that returns a {result}: put @dataclass('
            f'frozen=True) before class {kind}, with the settings as fields'
        )
    _check_written(value, name)


def encode(value: Any) -> Any:
    """The value as JSON data. A dataclass has its name under `kind`, and a user's the file or module under `from`.

    >>> encode(models.Perceptron(hidden=(8,)))
    {'kind': 'Perceptron', 'hidden': [8]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        source = source_of(type(value))
        kind = {'kind': type(value).__qualname__, **({'from': source} if source else {})}
        return kind | {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    return {name: encode(v) for name, v in value.items()} if isinstance(value, dict) else value


def decode(hint: Any, value: Any, where: str, known: tuple[type, ...] = ()) -> Any:
    """The value of type `hint` from the JSON data that `encode` wrote.

    Args:
        hint: the type; for `Any`, lists become tuples.
        value: the JSON data.
        where: the name of the place, for error messages.
        known: a user's classes. Another class must be a dataclass of a file or a module that is imported already.

    Raises:
        ExperimentError: the data are of another type, or of an unknown class.

    >>> decode(Any, {'kind': 'Perceptron', 'hidden': [8]}, 'model')
    Perceptron(hidden=(8,))
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return decode(arguments[0], value, where, known)
    if isinstance(value, dict) and ('from' in value or (hint is Any and 'kind' in value)):
        kind, source = value.get('kind'), value.get('from')
        if not isinstance(kind, str) or not isinstance(source, str | None):
            raise ExperimentError(f'{where}: a kind and its place must be texts, not {kind!r} and {source!r}')
        return _decode_dataclass({kind: _class_of(kind, source, where, known)}, value, where, known)
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], entry, f'{where}[{i}]', known) for i, entry in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    options = arguments if origin in (typing.Union, types.UnionType) else (hint,)
    kinds: dict[str, Any] = {o.__name__: o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)}
    if kinds and isinstance(value, dict):
        return _decode_dataclass(kinds, value, where, known)
    if type(value) is int and float in options:
        return float(value)
    if type(value) in options and not kinds:
        return value
    for option in options:
        if option is Any or (option is not hint and typing.get_origin(option) is not None):
            with contextlib.suppress(ExperimentError):
                return decode(option, value, where, known) if option is not Any else _plain(value, where, known)
    if isinstance(origin, type) and origin is not tuple and isinstance(value, list | dict):
        plain = _plain(value, where, known)
        return list(plain) if origin is list else plain
    raise ExperimentError(f'{where}: {value!r} is not {_named(options)}')


def _plain(value: Any, where: str, known: tuple[type, ...]) -> Any:
    """The value of a field whose type says nothing about it."""
    if isinstance(value, list):
        return tuple(decode(Any, entry, f'{where}[{i}]', known) for i, entry in enumerate(value))
    if isinstance(value, dict):
        return {name: decode(Any, entry, f'{where}.{name}', known) for name, entry in value.items()}
    return value


def _class_of(kind: str, source: str | None, where: str, known: tuple[type, ...]) -> type:
    if source is None:
        if kind not in OURS:
            there_are = f'did you mean {" or ".join(close)}?' if (close := nearest(kind, OURS)) else ', '.join(OURS)
            raise ExperimentError(f'{where}: jaxdist has no kind {kind!r}: {there_are}')
        return OURS[kind]
    for each in known:
        if (each.__qualname__, source_of(each)) == (kind, source):
            return each
    try:
        return find_class(kind, source)
    except ScriptError as error:
        raise ExperimentError(f'{where}: {error}') from None


def _decode_dataclass(kinds: dict[str, Any], value: dict[str, Any], where: str, known: tuple[type, ...]) -> Any:
    kind = value.get('kind', next(iter(kinds)) if len(kinds) == 1 else None)
    kind = FORMER_KINDS.get(str(kind), kind)
    if kind not in kinds:
        raise ExperimentError(f'{where}: kind {kind!r} is none of {", ".join(kinds)}')
    hints = typing.get_type_hints(kinds[kind], include_extras=True)
    given = {name: v for name, v in value.items() if name not in RESERVED}
    unknown = set(given) - set(hints)
    if unknown:
        raise ExperimentError(f'{where}: {kind} has no field {", ".join(sorted(unknown))}; it has {", ".join(hints)}')
    fields = {name: decode(hints[name], v, f'{where}.{name}', known) for name, v in given.items()}
    try:
        return kinds[kind](**fields)
    except TypeError as error:  # a field without a default is missing
        raise ExperimentError(f'{where}: {error}') from None


def _check_written(value: Any, where: str) -> None:
    """Checks that JSON can hold a value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        _check_names(names, where)
        for name in names:
            _check_written(getattr(value, name), f'{where}.{name}')
    elif isinstance(value, tuple | list):
        for i, entry in enumerate(value):
            _check_written(entry, f'{where}[{i}]')
    elif isinstance(value, dict) and all(isinstance(name, str) for name in value):
        _check_names(value, where)
        for name, entry in value.items():
            _check_written(entry, f'{where}.{name}')
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ExperimentError(
            f'{where}={value!r} cannot be written to experiment.json, from which a run is resumed: settings are '
            'numbers, text, None, tuples, dicts and dataclasses of these. Give the name of a function, and find the '
            'function in the method'
        )


def _check_names(names: Iterable[str], where: str) -> None:
    taken = [name for name in names if name in RESERVED]
    if taken:
        raise ExperimentError(
            f'{where} has a field {taken[0]!r}, the name under which experiment.json has the class: choose another name'
        )


def _named(options: tuple[Any, ...]) -> str:
    """The names of types, for an error message."""
    each = [typing.get_args(o) if typing.get_origin(o) is Literal else (getattr(o, '__name__', o),) for o in options]
    return ' or '.join('null' if name == 'NoneType' else str(name) for names in each for name in names)
