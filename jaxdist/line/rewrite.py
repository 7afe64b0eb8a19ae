"""From an update line to another one: with some keywords changed, or with every default written out."""

import ast
import re

from jaxdist.line.calls import FILLED, Call, did_you_mean, dotted, links
from jaxdist.line.reader import LineError, Reader

_SETTING = re.compile(r'(?P<call>[\w.]+)(\[(?P<index>\d+)\])?\.(?P<keyword>\w+)\s*=\s*(?P<value>\S.*)', re.DOTALL)


def override(line: str, *settings: str) -> str:
    """The line with one keyword changed by each setting, such as `adamw.learning_rate=1e-3`.

    The call may stand anywhere in the line, nested too; of several calls of one name, `sgd[1].momentum=0.9`
    sets the second. An argument that the line gives by position is replaced there; the rest of the text stays
    as it was written. Only the line that comes out need be right.

    Raises:
        LineError: a setting that has no place in the line, or a mistake in the line that comes out.

    >>> override('clip(1.0) | sgd(0.1)', 'sgd.learning_rate=1e-3', 'sgd.momentum=0.9')
    'clip(1.0) | sgd(1e-3, momentum=0.9)'
    """
    for setting in settings:
        line = _set(line, setting.strip())
    reader = Reader(line)
    reader.check_links(reader.body)
    return reader.text


def spell(line: str) -> str:
    """The line in full: registered functions with every default (but `axis`), optax's as they were called.

    Raises:
        LineError: a mistake in the line.

    >>> spell('clip(1.0)|sgd(learning_rate = 1e-1)')
    'clip(1.0) | sgd(learning_rate=0.1)'
    """
    reader = Reader(line)
    reader.check_links(reader.body)
    return ast.unparse(_Speller().visit(reader.body))


def split(line: str) -> list[str]:
    """The text of each link, in order.

    Raises:
        LineError: a mistake in the line.

    >>> split('clip(1.0) | sgd(0.1)')
    ['clip(1.0)', 'sgd(0.1)']
    """
    reader = Reader(line)
    reader.check_links(reader.body)
    return [ast.unparse(link) for link in links(reader.body)]


class _Speller(ast.NodeTransformer):
    """Writes every argument of a registered function as a keyword, in the order of its signature."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        call = Call(node)
        if not call.registered:
            return node
        defaults = {name: ast.Constant(p.default) for name, p in call.parameters.items() if name not in FILLED}
        # First in the order of the signature, then what `**kwargs` takes.
        every = {name: call.given.get(name) or defaults.get(name) for name in (*call.parameters, *call.given)}
        return ast.Call(node.func, [], [ast.keyword(name, value) for name, value in every.items() if value])


def _set(line: str, setting: str) -> str:
    match = _SETTING.fullmatch(setting)
    if not match:
        raise LineError('a setting is call.keyword=value, as in adamw.learning_rate=1e-3', setting, 0, len(setting))
    reader = Reader(line)
    call = reader.call(_find_call(reader, match))
    keyword, value = match['keyword'], _value(match)
    if old := call.given.get(keyword):
        start, end = reader.span(old)
        return reader.text[:start] + value + reader.text[end:]
    close = reader.span(call.node)[1] - 1
    before = reader.text[:close].rstrip(' ,')
    comma = '' if before.endswith('(') else ', '
    return f'{before}{comma}{keyword}={value}{reader.text[close:]}'


def _find_call(reader: Reader, match: re.Match[str]) -> ast.Call:
    name, index = match['call'], int(match['index'] or 0)
    calls = [node for node in ast.walk(reader.body) if isinstance(node, ast.Call) and dotted(node.func)]
    calls.sort(key=lambda node: node.col_offset)
    there = list(dict.fromkeys(dotted(node.func) for node in calls))
    found = [node for node in calls if f'.{dotted(node.func)}'.endswith(f'.{name}')]
    if not found:
        hint = did_you_mean(name, there)
        problem = f'the line has no call {name!r}{hint} (its calls are {", ".join(there)})'
    elif index >= len(found):
        problem = f'the line calls {name!r} {len(found)} times, and [0] is the first'
    elif len(found) > 1 and not match['index']:
        first = f'{name}[0].{match["keyword"]}=...'
        problem = f'the line calls {name!r} {len(found)} times: write {first} for the first'
    else:
        return found[index]
    raise LineError(problem, match.string, 0, match.end('index') + 1 if match['index'] else len(name))


def _value(match: re.Match[str]) -> str:
    """The text of the value, alone a right one: nothing in it can end the call that it goes into."""
    try:
        reader = Reader(match['value'])
        reader.check_value(reader.body)
    except LineError as error:
        raise LineError(error.problem, match.string, match.start('value') + error.column, error.width) from None
    # A tuple may come without its brackets.
    return ast.unparse(reader.body) if isinstance(reader.body, ast.Tuple) else reader.text
