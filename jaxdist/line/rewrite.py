"""Rewrites update lines: overrides keywords, writes out defaults."""

import ast
import re
from typing import Any

from jaxdist.line.calls import FILLED, Call, did_you_mean, dotted, is_constant
from jaxdist.line.reader import LineError, Reader

_SETTING = re.compile(r'(?P<call>[\w.]+)(\[(?P<index>\d+)\])?\.(?P<keyword>\w+)\s*=\s*(?P<value>\S.*)', re.DOTALL)


def override(line: str, *settings: str) -> str:
    """The line with one keyword changed by each setting, such as `adamw.learning_rate=1e-3`.

    The call may be nested; if a name is called several times, `sgd[1].momentum=0.9` sets the second call. An argument
    given by position is replaced at its position; the rest of the text does not change. Only the resulting line is
    checked, so the given line may lack arguments.

    Args:
        line: the update line.
        *settings: settings of the form `call.keyword=value`.

    Raises:
        LineError: the line has no call of a setting's name, or the resulting line has a mistake.

    >>> override('clip(1.0) | sgd(0.1)', 'sgd.learning_rate=1e-3', 'sgd.momentum=0.9')
    'clip(1.0) | sgd(1e-3, momentum=0.9)'
    """
    for setting in settings:
        line = _set(line, setting.strip())
    reader = Reader(line)
    reader.check_chain(reader.body)
    return reader.text


def constant(line: str, keyword: str) -> Any:
    """The constant that a line gives to a keyword, such as `adamw.learning_rate`; None if it gives none.

    Args:
        line: the update line.
        keyword: `call.keyword`, as in `override`.

    Raises:
        LineError: the line has no such call, or several.

    >>> constant('mean() | sgd(0.1)', 'sgd.learning_rate'), constant('mean() | sgd(0.1)', 'sgd.momentum')
    (0.1, None)
    """
    reader = Reader(line)
    match = _SETTING.fullmatch(f'{keyword}=0')
    if match is None:
        raise LineError('a keyword is call.keyword, as in adamw.learning_rate', keyword, 0, len(keyword))
    given = reader.call(_find_call(reader, match)).given.get(match['keyword'])
    return ast.literal_eval(given) if given is not None and is_constant(given) else None


def spell(line: str) -> str:
    """The line with all defaults of registered functions, except `axis`; calls of optax do not change.

    Raises:
        LineError: the line has a mistake.

    >>> spell('clip(1.0)|sgd(learning_rate = 1e-1)')
    'clip(1.0) | sgd(learning_rate=0.1)'
    """
    reader = Reader(line)
    reader.check_chain(reader.body)
    return ast.unparse(_Speller().visit(reader.body))


class _Speller(ast.NodeTransformer):
    """Writes all arguments of registered functions as keywords, in the order of their signatures."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        call = Call(node)
        if not call.registered:
            return node
        defaults = {name: ast.Constant(p.default) for name, p in call.parameters.items() if name not in FILLED}
        # First in the order of the signature, then the arguments of `**kwargs`.
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
    names = list(dict.fromkeys(dotted(node.func) for node in calls))
    matches = [node for node in calls if f'.{dotted(node.func)}'.endswith(f'.{name}')]
    if not matches:
        hint = did_you_mean(name, names)
        problem = f'the line has no call {name!r}{hint} (its calls are {", ".join(names)})'
    elif index >= len(matches):
        problem = f'the line calls {name!r} {len(matches)} times, and [0] is the first'
    elif len(matches) > 1 and not match['index']:
        first = f'{name}[0].{match["keyword"]}=...'
        problem = f'the line calls {name!r} {len(matches)} times: write {first} for the first'
    else:
        return matches[index]
    raise LineError(problem, match.string, 0, match.end('index') + 1 if match['index'] else len(name))


def _value(match: re.Match[str]) -> str:
    """The text of the value, checked by itself, so that it cannot close the call that it is put into."""
    try:
        reader = Reader(match['value'])
        reader.check_value(reader.body)
    except LineError as error:
        raise LineError(error.problem, match.string, match.start('value') + error.column, error.width) from None
    # A tuple may be written without parentheses, which it needs as an argument.
    return ast.unparse(reader.body) if isinstance(reader.body, ast.Tuple) else reader.text
