"""Names the optax transformation in which an error arose while it was traced, and says what would be right."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxdist.core.errors import InputError

OFFERED = ('value', 'grad', 'value_fn')
"""The extra arguments of `update` that a training step can give."""

Frame = tuple[str, str]
"""The qualified name of a function, and its file."""

_UPDATE = re.compile(r'(?:(\w+)\.)?(?:<locals>\.)?(\w*update\w*)')
_MISSING = re.compile(r'([\w.<>]+)\(\) missing \d+ required keyword-only arguments?: (.*)')
_JAX = str(Path(jax.__file__).parent)
_ALGORITHMS = str(Path(__file__).parents[1] / 'algorithms')


class MisusedError(Exception):
    """An extra argument is used where it does not fit. `explained` puts the name of the transformation first."""


@contextmanager
def explained(diverge: bool = False) -> Iterator[None]:
    """A context in which errors about extra arguments of `update` become an `InputError` with a cure.

    Args:
        diverge: whether workers diverge.

    >>> import optax
    >>> with explained():
    ...     optax.polyak_sgd().update(1.0, optax.polyak_sgd().init(1.0))
    Traceback (most recent call last):
    jaxdist.InputError: scale_by_polyak needs 'value', and there is no loss here: only a training step has one, and
    gives it to lines in which each transformation accepts extra arguments
    """
    try:
        yield
    except InputError:
        raise
    except (MisusedError, TypeError, ValueError, AttributeError) as error:
        message = _message(error, list(_frames(error)), diverge)
        if message is None:
            raise
        raise InputError(message) from error


def rule_of(frames: Iterable[Frame]) -> str:
    """The function that made the innermost `update` of a stack, such as `scale_by_polyak`.

    Args:
        frames: the stack, the innermost first.

    >>> rule_of([('add', 'numpy.py'), ('scale_by_polyak.<locals>.update_fn', 'transform.py')])
    'scale_by_polyak'
    """
    for name, file in frames:
        if (match := _UPDATE.match(name)) and not file.startswith(_JAX):
            return match[1] or match[2]
    return 'a transformation'


def _message(error: Exception, frames: list[Frame], diverge: bool) -> str | None:
    rule, text, given = rule_of(frames), str(error), ', '.join(OFFERED)
    if isinstance(error, MisusedError):
        return f'{rule} {text}'
    if missing := _MISSING.search(text):
        rule, names = rule_of([(missing[1], '')]), re.findall(r"'(\w+)'", missing[2])
        if unknown := [repr(name) for name in names if name not in OFFERED]:
            return f'{rule} needs {", ".join(unknown)}, and a training step gives {given} only: take another optimiser'
        if algorithm := next((name.split('.')[0] for name, file in frames if file.startswith(_ALGORITHMS)), ''):
            return (
                f'{algorithm}: {rule} needs {missing[2]}, and there is no loss of the parameters that it moves: take '
                'an optimiser that needs a gradient only, such as sgd(0.7, momentum=0.9, nesterov=True)'
            )
        return (
            f'{rule} needs {missing[2]}, and there is no loss here: only a training step has one, and gives it to '
            'lines in which each transformation accepts extra arguments'
        )
    if needs := re.search(r'(\w+) must be provided', text):
        return f'{rule} needs {needs[1]!r}, and a training step gives {given} only: take another optimiser'
    if rule == 'lookahead':
        return (
            'lookahead needs parameters of the type LookaheadParams, which a training step does not have. '
            'sgd(0.1) | diloco(every=5, outer=sgd(0.5)) takes the steps of lookahead(sgd(0.1), 5, 0.5) on each worker, '
            'and the mean over workers every 5 steps'
        )
    if isinstance(error, TypeError) and 'manual axis types do not match' in text:
        if rule == 'MultiSteps':
            return (
                'MultiSteps has a branch that must be the same on all workers, and their gradients differ here: write '
                'accumulate(every=..., update=...) in its place, which synchronises when the update is due'
            )
        cure = 'use mean() in place of local training, or leave it out' if diverge else 'put mean() before it'
        return (
            f'{rule} has a branch or a loop that must be the same on all workers, and its values differ between '
            f'workers here: {cure}'
        )
    return None


def _frames(error: Exception) -> Iterator[Frame]:
    """The stack of an error, the innermost frame first."""
    codes, step = [], error.__traceback__
    while step is not None:
        codes.append(step.tb_frame.f_code)
        step = step.tb_next
    return ((code.co_qualname, code.co_filename) for code in reversed(codes))
