"""Checks the order of transformations in a line, and that their periods fit into the run."""

import ast
from collections.abc import Iterator

from jaxdist.core.registry import Entry, Syncs, find
from jaxdist.line.calls import Call, dotted, transformations
from jaxdist.line.reader import LineError, Reader

HARMLESS = ('identity', 'keep_params_nonnegative')
"""Transformations of optax that may follow the synchronisation of parameters: they leave equal parameters equal."""

PERIODS = {'every': 'workers would never synchronise', 'steps': 'no update would ever come out'}
"""Arguments of registered algorithms that are numbers of steps, and the consequence of more steps than the run has."""


def check_order(reader: Reader) -> None:
    """Checks that workers synchronise once in a checked line, and that the synchronisation of parameters comes last.

    Raises:
        LineError: two transformations synchronise workers on one axis, or one follows after parameters are equal.

    >>> check_order(Reader('sgd(0.1) | average(every=10)'))
    """
    first: ast.Call | None = None
    for part in transformations(reader.body):
        assert isinstance(part, ast.Call)  # the line has been checked
        if first is not None and syncs(first) == 'parameters' and not syncs(part) and dotted(part.func) not in HARMLESS:
            raise _not_last(reader, first)
        if syncs(part):
            # Axes may be nested: workers may synchronise once on each.
            if first is not None and _axis(first) == _axis(part):
                raise _twice(reader, first, part)
            first = part


def check_last(reader: Reader) -> None:
    """Checks that transformations which project or reset multipliers come last in a checked dual line.

    Raises:
        LineError: a transformation that moves multipliers comes after one that projects or resets them.

    >>> check_last(Reader('sgd(0.1) | within(most=1.0)', 'dual'))
    """
    final: ast.Call | None = None
    for part in transformations(reader.body):
        assert isinstance(part, ast.Call)  # the line has been checked
        function = find(dotted(part.func))
        if isinstance(function, Entry) and function.final:
            final = part
        elif final is not None:
            name = dotted(final.func)
            reason = f'projects or resets multipliers, and {dotted(part.func)} moves them again: put {name} last'
            raise reader.error(f'{name} {reason}', final)


def check_fits(line: str, steps: int) -> None:
    """Checks that the periods and delays of all registered algorithms in a line fit into a run of `steps` steps.

    Raises:
        LineError: a registered algorithm has `steps` or `every` of more than this number.

    >>> check_fits('sgd(0.1) | average(every=10)', steps=20)
    >>> check_fits('sgd(0.1) | average(every=30)', steps=20)
    Traceback (most recent call last):
    jaxdist.line.reader.LineError: average(every=30) is longer than the run of 20 steps: workers would never synchronise
        sgd(0.1) | average(every=30)
                                 ^^
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    for call, name, value, node in _periods(reader.body):
        if value > steps:
            problem = f'{call.name}({name}={value}) is longer than the run of {steps} steps'
            raise reader.error(f'{problem}: {PERIODS[name]}', node)


def _periods(body: ast.expr) -> Iterator[tuple[Call, str, int, ast.expr]]:
    """The whole numbers given as periods to registered algorithms, nested ones too: (call, name, value, node)."""
    for node in ast.walk(body):
        if isinstance(node, ast.Call) and isinstance(find(dotted(node.func)), Entry):
            call = Call(node)
            for name in PERIODS.keys() & call.given.keys():
                given = call.given[name]
                for part in given.elts if isinstance(given, ast.Tuple) else [given]:
                    if isinstance(part, ast.Constant) and isinstance(part.value, int):
                        yield call, name, part.value, part


def syncs(call: ast.Call) -> Syncs:
    """What is the same on all workers after a transformation: 'updates', 'parameters', or '' for nothing.

    >>> syncs(ast.parse('mean()', mode='eval').body), syncs(ast.parse('sgd(0.1)', mode='eval').body)
    ('updates', '')
    """
    function = find(dotted(call.func))
    return function.syncs if isinstance(function, Entry) else ''


def _axis(call: ast.Call) -> str:
    given = Call(call).given.get('axis')
    return ast.unparse(given) if given is not None else ''


def _not_last(reader: Reader, first: ast.Call) -> LineError:
    others = [part for part in transformations(reader.body) if part is not first]
    right = ' | '.join(ast.unparse(part) for part in [*others, first])
    name = dotted(first.func)
    reason = 'synchronises parameters, and a transformation after it would change them'
    return reader.error(f'{name} {reason}: put it last, as in {right}', first)


def _twice(reader: Reader, first: ast.Call, second: ast.Call) -> LineError:
    names = dotted(first.func), dotted(second.func)
    if 'updates' in (syncs(first), syncs(second)):
        reason = f'values that are equal on all workers after {names[0]} need not be averaged'
    else:
        reason = f'{names[0]} synchronises parameters already'
    return reader.error(
        f'workers synchronise twice in this line: {reason}. Leave out one of {names[0]} and {names[1]}', second
    )
