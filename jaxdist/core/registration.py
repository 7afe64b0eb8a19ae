"""Checks of a function that is registered: the claims of its example lines, and its parameters."""

import ast
import inspect
from typing import Any

from jaxdist.core.errors import InputError


def check_claims(name: str, line: str, claims: Any) -> None:
    """Checks the claims of an example line: laws, in a tuple.

    Args:
        name: the name of the function that is registered.
        line: the example line.
        claims: what the line claims.

    Raises:
        InputError: they are something else.

    >>> check_claims('sgd', 'sgd(0.1)', ())
    """
    if hasattr(claims, 'check'):  # a law is a tuple itself
        raise InputError(f'{name}: the claims of {line!r} are one law; write (law,) with a comma')
    if not isinstance(claims, tuple | list):
        raise InputError(f'{name}: the claims of {line!r} must be a tuple of laws, not a {type(claims).__name__}')
    for law in claims:
        if not callable(getattr(law, 'check', None)) or isinstance(law, type):
            what = getattr(law, '__name__', repr(law))
            cure = f': call it, as in laws.{what}()' if callable(law) else ''
            raise InputError(f'{name}: {what} among the claims of {line!r} is no law{cure}')


def check_parameter(name: str, parameter: inspect.Parameter) -> None:
    """Checks that a line can give a parameter by name, and write its default.

    Args:
        name: the name of the function that is registered.
        parameter: one of its parameters.

    Raises:
        InputError: it cannot.

    >>> check_parameter('f', inspect.Parameter('x', inspect.Parameter.KEYWORD_ONLY, default=0.5))
    """
    if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
        raise InputError(f'{name}({parameter}): a line gives every parameter by name, so this one needs a name')
    if parameter.default is not parameter.empty and not _writable(parameter.default):
        raise InputError(
            f'{name}({parameter.name}={parameter.default!r}): a line cannot write this default; '
            f'use a constant, or None and create the value in the function'
        )


def _writable(default: Any) -> bool:
    try:
        return bool(ast.literal_eval(ast.unparse(ast.Constant(default))) == default)
    except (SyntaxError, TypeError, ValueError):
        return False
