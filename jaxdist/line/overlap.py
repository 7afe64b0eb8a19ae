"""For how many steps what a line sends has lain ready, as far as its algorithms say so."""

import ast
from typing import Any

from jaxdist.core.registry import Entry, find
from jaxdist.line.calls import Call, dotted
from jaxdist.line.reader import Reader


def overlap(line: str) -> int:
    """For how many steps what the line sends has lain ready when a step begins: 1 unless an algorithm says more.

    A schedule counts as 1, and a number for each worker as the smallest.

    Args:
        line: the update line.

    Raises:
        LineError: the line has a mistake.

    >>> overlap('delay(steps=4) | mean() | sgd(0.1)'), overlap('mean() | sgd(0.1)')
    (4, 1)
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    calls = [node for node in ast.walk(reader.body) if isinstance(node, ast.Call)]
    return max([1, *(_steps(node) for node in calls)])


def _steps(node: ast.Call) -> int:
    function = find(dotted(node.func))
    if not isinstance(function, Entry) or not function.overlap:
        return 1
    call = Call(node)
    given = call.given.get(function.overlap)
    value = call.parameters[function.overlap].default if given is None else _constant(given)
    steps = min(value) if isinstance(value, tuple) else value
    return steps if isinstance(steps, int) else 1


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
