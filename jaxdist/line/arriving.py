"""Lines with a rule of a server: what workers do, the rule, and what the server does."""

import ast
from typing import Any, NamedTuple

import optax

from jaxdist.core.collectives import AXIS
from jaxdist.line.builder import Builder
from jaxdist.line.calls import dotted, kind_of, transformations
from jaxdist.line.reader import Reader


class Arriving(NamedTuple):
    """A line by a rule of a server.

    Attributes:
        at_workers: what a worker does with its gradient.
        rule: the rule.
        at_server: what the server does with the messages.
    """

    at_workers: optax.GradientTransformationExtraArgs
    rule: Any
    at_server: optax.GradientTransformationExtraArgs


def split_rule(line: str, axis: str = AXIS) -> Arriving | None:
    """The parts of a line with a rule of a server, as `clip(1.0) | ssp(bound=3) | sgd(0.1)`; None for other lines.

    Args:
        line: the update line.
        axis: the worker axis, as in `build`.

    Raises:
        LineError: as in `build`; there are several rules, or an algorithm in which all workers communicate.

    >>> split_rule('ssp(bound=3) | sgd(0.1)').rule.name, split_rule('mean() | sgd(0.1)')
    ('ssp(bound=3)', None)
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    parts = transformations(reader.body)
    places = [i for i, part in enumerate(parts) if kind_of(part) == 'rule']
    if not places:
        return None
    if len(places) > 1:
        raise reader.error('a line has one rule of a server, and this is one more', parts[places[1]])
    for call in [reader.call(node) for node in ast.walk(reader.body) if isinstance(node, ast.Call)]:
        if call.registered and 'axis' in call.parameters:
            name = dotted(parts[places[0]].func)  # type: ignore[attr-defined]
            reason = f'in {call.name} all workers communicate, and by {name} each sends to a server when it is ready'
            raise reader.error(f'{reason}: leave one of them out', call.node)
    builder = Builder(reader, axis)
    before, after = builder.parts(parts[: places[0]]), builder.parts(parts[places[0] + 1 :])
    return Arriving(before, builder.value(parts[places[0]]), after)
