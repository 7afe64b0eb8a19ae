"""What tuning varies: fields of an experiment or keywords of its update line, each with a range."""

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdist import line
from jaxdist.training.experiment import Experiment, ExperimentError

KINDS = ('log', 'uniform', 'int', 'choice')
HOW = "write log(1e-4, 1e-1), uniform(0.0, 0.9), int(1, 64) or choice(1, 'a', None)"


class Field(NamedTuple):
    """A field and the values that it may take.

    Attributes:
        name: a field of the experiment, such as `batch` or `model.width`, or a keyword of the update line, such as
            `adamw.learning_rate`.
        kind: `log` and `uniform` are ranges of real numbers, `int` of whole ones, both ends included; or `choice`.
        values: the two ends, or the choices.
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    def admits(self, value: Any) -> bool:
        """Whether a value is among those of the field."""
        if self.kind == 'choice':
            return value in self.values
        whole = isinstance(value, int) or self.kind != 'int'
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and whole and self.values[0] <= value <= self.values[1]


def read_field(text: str) -> Field:
    """A field from text such as `adamw.learning_rate=log(1e-4, 1e-1)`.

    Raises:
        ExperimentError: it is no name and range.

    >>> read_field('adamw.learning_rate=log(1e-4, 1e-1)')
    Field(name='adamw.learning_rate', kind='log', values=(0.0001, 0.1))
    """
    name, equals, range_text = text.partition('=')
    try:
        call = ast.parse(range_text.strip(), mode='eval').body
        kind = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ''
        values = tuple(map(ast.literal_eval, call.args)) if isinstance(call, ast.Call) else ()
    except (SyntaxError, ValueError):
        kind, values = '', ()
    if not equals or kind not in KINDS:
        raise ExperimentError(f'{text!r} is no field with a range, as in adamw.learning_rate=log(1e-4, 1e-1): {HOW}')
    field = Field(name.strip(), kind, values)
    if kind == 'choice':
        if len(set(map(repr, values))) < 2:
            raise ExperimentError(f'{text!r} leaves no choice: name two values or more')
        return field
    number = int if kind == 'int' else (int, float)
    right = len(values) == 2 and all(isinstance(x, number) and not isinstance(x, bool) for x in values)
    if not right or not values[0] < values[1] or (kind == 'log' and values[0] <= 0):
        above = ', both above 0' if kind == 'log' else ''
        raise ExperimentError(f'{text!r}: {kind} takes two {"whole " * (kind == "int")}numbers, the lower first{above}')
    return field


def applies(field: Field, experiment: Experiment) -> bool:
    """Whether an experiment has the field: a keyword of a call that its line does not have, it has not.

    >>> field = read_field('adamw.learning_rate=log(1e-4, 1e-1)')
    >>> applies(field, Experiment(update='mean() | sgd(0.1)')), applies(field, Experiment())
    (False, True)
    """
    if _is_of_experiment(field.name, experiment):
        return True
    call = field.name.rpartition('.')[0].partition('[')[0]
    return bool(call) and f'{call}(' in experiment.update.replace(' ', '')


def value(field: Field, experiment: Experiment) -> Any:
    """The value that an experiment has for the field; None if its line leaves it to a default.

    Raises:
        LineError: the line calls the name several times, and the field does not say which is meant.

    >>> (
    ...     value(read_field('batch=int(8, 64)'), Experiment()),
    ...     value(read_field('adamw.b1=uniform(0.0, 0.9)'), Experiment()),
    ... )
    (64, None)
    """
    if not _is_of_experiment(field.name, experiment):
        return line.constant(experiment.update, field.name)
    node: Any = experiment
    for part in field.name.split('.'):
        node = getattr(node, part)
    return node


def replaced(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    """The experiment with these values of fields.

    Raises:
        InputError: a value does not fit.

    >>> replaced(Experiment(update='mean() | sgd(0.1)'), {'sgd.learning_rate': 0.2, 'batch': 8}).update
    'mean() | sgd(0.2)'
    """
    for name, x in values.items():
        if _is_of_experiment(name, experiment):
            experiment = _with(experiment, name.split('.'), x)
        else:
            update = line.override(experiment.update, f'{name}={x!r}')
            experiment = dataclasses.replace(experiment, update=update)
    return experiment


def check_fields(fields: Sequence[Field], experiments: Sequence[Experiment]) -> None:
    """Checks that each field is one of some experiment, and that each experiment has one.

    Raises:
        InputError: a field is of no experiment, an experiment has none, or a call has no such keyword.

    >>> check_fields([read_field('adam.b1=uniform(0.0, 0.9)')], [Experiment()])
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: no variant has 'adam.b1': it is neither a field of the experiment nor a
    keyword of a call in an update line, 'mean() | adamw(learning_rate=1e-3)'
    """
    if not fields:
        raise ExperimentError(f'there is nothing to tune: name fields, as --over adamw.learning_rate=...; {HOW}')
    for field in fields:
        if not any(applies(field, each) for each in experiments):
            lines = ', '.join(repr(update) for update in dict.fromkeys(each.update for each in experiments))
            raise ExperimentError(
                f'no variant has {field.name!r}: it is neither a field of the experiment nor a keyword of a call in an '
                f'update line, {lines}'
            )
    for each in experiments:
        for field in fields:
            if applies(field, each):
                value(field, each)  # raises an error if the name is ambiguous
                replaced(each, {field.name: field.values[0]})  # and this one, if the call has no such keyword
        if not any(applies(field, each) for field in fields):
            raise ExperimentError(f'no field is one of {each.update!r}: it would have one trial where others have many')


def _is_of_experiment(name: str, experiment: Experiment) -> bool:
    node: Any = experiment
    for part in name.split('.'):
        if not dataclasses.is_dataclass(node) or part not in {f.name for f in dataclasses.fields(node)}:
            return False
        node = getattr(node, part)
    return True


def _with(node: Any, path: list[str], x: Any) -> Any:
    first, *rest = path
    return dataclasses.replace(node, **{first: _with(getattr(node, first), rest, x) if rest else x})
