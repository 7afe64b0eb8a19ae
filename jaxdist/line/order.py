"""Links in an order that has a meaning: workers meet once in a line, and where they meet comes last."""

import ast
from collections.abc import Iterator

from jaxdist.core.registry import Entry, Syncs, find
from jaxdist.line.calls import Call, dotted, links
from jaxdist.line.reader import LineError, Reader

HARMLESS = ('identity', 'keep_params_nonnegative')
"""Links of optax that may follow a meeting: what they do does not move it."""

WAITS = {'every': 'workers would never meet', 'steps': 'nothing would ever come'}
"""Arguments of registered algorithms that are numbers of steps, and what comes of too many."""


def check_order(reader: Reader) -> None:
    """Says which link of a checked line has no meaning where it stands.

    Raises:
        LineError: two links through which workers meet on one axis, or a link after one that moves parameters.

    >>> check_order(Reader('sgd(0.1) | average(every=10)'))
    """
    met: ast.Call | None = None
    for link in links(reader.body):
        assert isinstance(link, ast.Call)  # the line has been checked
        if met is not None and meets(met) == 'parameters' and not meets(link) and dotted(link.func) not in HARMLESS:
            raise _too_early(reader, met)
        if meets(link):
            if met is not None and _axis(met) == _axis(link):
                raise _twice(reader, met, link)
            met = link


def check_last(reader: Reader) -> None:
    """Says which link of a checked dual line must come later: one that settles where multipliers are to be.

    Raises:
        LineError: a link that moves multipliers comes after one that settles them.

    >>> check_last(Reader('sgd(0.1) | within(most=1.0)', 'dual'))
    """
    settled: ast.Call | None = None
    for link in links(reader.body):
        assert isinstance(link, ast.Call)  # the line has been checked
        found = find(dotted(link.func))
        if isinstance(found, Entry) and found.final:
            settled = link
        elif settled is not None:
            name = dotted(settled.func)
            why = f'settles where multipliers are to be, and {dotted(link.func)} moves them: put {name} last'
            raise reader.error(f'{name} {why}', settled)


def check_fits(line: str, steps: int) -> None:
    """Says which algorithm of a line, if any, takes longer than the run.

    Raises:
        LineError: a registered algorithm has `steps` or `every` of more than so many steps.

    >>> check_fits('sgd(0.1) | average(every=10)', steps=20)
    >>> check_fits('sgd(0.1) | average(every=30)', steps=20)
    Traceback (most recent call last):
    jaxdist.line.reader.LineError: average(every=30) is longer than the run of 20 steps: workers would never meet
        sgd(0.1) | average(every=30)
                                 ^^
    """
    reader = Reader(line)
    reader.check_links(reader.body)
    for call, name, value, place in _waits(reader.body):
        if value > steps:
            what = f'{call.name}({name}={value}) is longer than the run of {steps} steps'
            raise reader.error(f'{what}: {WAITS[name]}', place)


def _waits(body: ast.expr) -> Iterator[tuple[Call, str, int, ast.expr]]:
    """The whole numbers that registered algorithms, nested too, are given for their waits, and where they stand."""
    for node in ast.walk(body):
        if isinstance(node, ast.Call) and isinstance(find(dotted(node.func)), Entry):
            call = Call(node)
            for name in WAITS.keys() & call.given.keys():
                given = call.given[name]
                for part in given.elts if isinstance(given, ast.Tuple) else [given]:
                    if isinstance(part, ast.Constant) and isinstance(part.value, int):
                        yield call, name, part.value, part


def meets(link: ast.Call) -> Syncs:
    """What workers come to agree on through a link, if anything.

    >>> meets(ast.parse('mean()', mode='eval').body), meets(ast.parse('sgd(0.1)', mode='eval').body)
    ('updates', '')
    """
    found = find(dotted(link.func))
    return found.syncs if isinstance(found, Entry) else ''


def _axis(link: ast.Call) -> str:
    given = Call(link).given.get('axis')
    return ast.unparse(given) if given is not None else ''


def _too_early(reader: Reader, met: ast.Call) -> LineError:
    others = [link for link in links(reader.body) if link is not met]
    right = ' | '.join(ast.unparse(link) for link in [*others, met])
    name = dotted(met.func)
    why = 'moves parameters to where workers meet, and what follows would change that'
    return reader.error(f'{name} {why}: put it last, as in {right}', met)


def _twice(reader: Reader, first: ast.Call, second: ast.Call) -> LineError:
    names = dotted(first.func), dotted(second.func)
    if 'updates' in (meets(first), meets(second)):
        why = f'{names[0]} has them agree already: what is the same on all workers need not be averaged'
    else:
        why = f'{names[0]} says where they meet already'
    return reader.error(f'workers meet twice in this line: {why}. Leave one of {names[0]} and {names[1]} out', second)
