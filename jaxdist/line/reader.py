"""Parses an update line with `ast` and finds every mistake in it; nothing is called."""

import ast
import re
from collections.abc import Sequence

from jaxdist.core.errors import InputError
from jaxdist.core.registry import Kind, find, names
from jaxdist.line.calls import Call, dotted, is_constant, kind_of, transformations
from jaxdist.line.field_names import keyword_hint, line_hint

SYNTAX = 'transformations are joined by |, as in mean() | adamw(learning_rate=1e-3)'
VALUES = 'a value is a number, a string, True, False, None, a tuple, a list, a dict or a call'
ELSEWHERE = {
    'algorithm': '{0} works on gradients or parameters: it belongs in the update line',
    'codec': '{0} is a codec: give it to an algorithm, as in mean(codec={0}())',
    'dual': '{0} moves multipliers: it belongs in the dual line of constraints (constraints.dual)',
    'constraint': '{0} is a constraint: it belongs in the list of constraints (constraints.hold)',
    'compute time': '{0} says how long workers compute: it belongs to the clock (clock.compute)',
    'rule': '{0} is a rule of a server: it belongs in the update line, before the optimiser of the server',
    'graph': '{0} is a graph: give it to an algorithm, as in gossip(graph={0}())',
}
"""The message for a registered function of a kind that cannot be a transformation of the line."""

REFUSED: dict[type[ast.expr], str] = {
    ast.Attribute: 'an attribute',
    ast.BinOp: 'arithmetic',
    ast.BoolOp: 'a logical expression',
    ast.Compare: 'a comparison',
    ast.IfExp: 'a condition',
    ast.JoinedStr: 'an f-string',
    ast.Lambda: 'a lambda',
    ast.Starred: 'a starred argument',
    ast.Subscript: 'a subscript',
    ast.UnaryOp: 'arithmetic',
}


class LineError(InputError):
    """A mistake in an update line; the message has the problem, the line, and carets under the mistake.

    Attributes:
        problem: the message without the line.
        line: the line.
        column: the first wrong character, counted from 0.
        width: the number of wrong characters.
    """

    def __init__(self, problem: str, line: str, column: int, width: int = 1) -> None:
        self.problem, self.line, self.column, self.width = problem, line, column, width
        blank = re.sub(r'[^\t]', ' ', line[:column])
        super().__init__(f'{problem}\n    {line}\n    {blank}{"^" * width}')


class Reader:
    """A parsed line, and the checks of its parts.

    Attributes:
        kind: the kind of registered functions that can be transformations of the line: `algorithm`, or `dual`.
        text: the line without surrounding spaces.
        body: the line's tree; the constructor does not check it.

    Raises:
        LineError: the text is empty or is not a Python expression.

    >>> reader = Reader('clip(1.0) | sgd(0.1)')
    >>> reader.check_chain(reader.body)
    >>> [reader.span(part) for part in transformations(reader.body)]
    [(0, 9), (12, 20)]
    """

    def __init__(self, text: str, kind: Kind = 'algorithm') -> None:
        self.kind = kind
        # Carets need a single line, and columns must not shift: each character is replaced by one other.
        self.text = re.sub(r'[\n\r\f]', ' ', text).strip()
        if not self.text:
            raise LineError(f'the line is empty: {SYNTAX}', self.text, 0)
        try:
            self.body = ast.parse(self.text, mode='eval').body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            column = (getattr(error, 'offset', None) or len(self.text) + 1) - 1
            message = getattr(error, 'msg', None) or str(error)
            raise LineError(f'{message}; {SYNTAX}', self.text, column) from None
        rest = self.text[self.span(self.body)[1] :].lstrip(' )')
        if rest:
            raise LineError('a line has no comments', self.text, len(self.text) - len(rest), len(rest))

    def span(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        """The first and the last column of a node, in characters; `ast` counts bytes."""
        data = self.text.encode()
        return len(data[: node.col_offset].decode()), len(data[: node.end_col_offset].decode())

    def error(self, problem: str, node: ast.expr | ast.keyword) -> LineError:
        """A mistake with carets under the node; for a call or a keyword, under its name only."""
        start, end = self.span(node.func if isinstance(node, ast.Call) else node)
        if isinstance(node, ast.keyword):
            end = start + len(node.arg or '**')
        return LineError(problem, self.text, start, end - start)

    def check_chain(self, node: ast.expr) -> None:
        """Raises LineError unless each transformation is a call of a function of the right kind."""
        for part in transformations(node):
            self._check_separator(part)
            if not isinstance(part, ast.Call):
                self._check_bare_name(part)
                raise self.error(f'a transformation is a call; {SYNTAX}', part)
            kind = kind_of(part)
            if kind is not None and kind != self.kind and (kind, self.kind) != ('rule', 'algorithm'):
                raise self.error(ELSEWHERE[kind].format(dotted(part.func)), part)
            self._check_call(part)

    def check_value(self, node: ast.expr) -> None:
        """Raises LineError unless this is a constant, a container, a call or a chain of calls."""
        match node:
            case ast.Call():
                self._check_call(node)
            case ast.BinOp(op=ast.BitOr()):
                self.check_chain(node)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self.check_value(part)
            case ast.Dict():
                self._check_dict(node)
            case _ if not is_constant(node):
                self._check_separator(node)
                self._check_bare_name(node, ('True', 'False', 'None'))
                raise self.error(f'{REFUSED.get(type(node), "this")} is not allowed: {VALUES}', node)

    def call(self, node: ast.Call) -> Call:
        """The call, matched with its function."""
        name = dotted(node.func)
        if not name:
            raise self.error(f'only a name can be called; {SYNTAX}', node)
        if not find(name):
            raise self._unknown(name, node)
        return Call(node)

    def _check_call(self, node: ast.Call) -> None:
        call = self.call(node)
        for part in (*node.args, *node.keywords):
            if isinstance(part, ast.Starred) or (isinstance(part, ast.keyword) and part.arg is None):
                raise self.error(f'{REFUSED[ast.Starred]} is not allowed: {VALUES}', part)
        if call.surplus:
            most = len(call.by_position)
            takes = f'{most or "no"} argument{"" if most == 1 else "s"} by position'
            raise self.error(f'{call.name} takes {takes}, and this is one more ({call.takes})', call.surplus[0])
        self._check_keywords(call)
        if call.missing:
            raise self.error(f'{call.name} needs {", ".join(call.missing)} ({call.takes})', node)
        for value in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.check_value(value)

    def _check_keywords(self, call: Call) -> None:
        names_given = call.by_position[: len(call.node.args)]
        for keyword in call.node.keywords:
            name = str(keyword.arg)
            if name in names_given:
                raise self.error(f'{call.name} is given {name!r} twice', keyword)
            if not call.allows(name):
                hint = keyword_hint(name, call.parameters)
                raise self.error(f'{call.name} has no keyword {name!r}{hint} ({call.takes})', keyword)
            names_given.append(name)

    def _check_dict(self, node: ast.Dict) -> None:
        keys = set()
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None or not is_constant(key):
                raise self.error('a key of a dict is a number, a string, True, False or None', key or value)
            if (name := ast.literal_eval(key)) in keys:
                raise self.error(f'key {name!r} is given twice', key)
            keys.add(name)
            self.check_value(value)

    def _check_separator(self, node: ast.expr) -> None:
        match node:
            case (
                ast.BinOp(left=first, right=second)
                | ast.BoolOp(values=[first, second, *_])
                | ast.Compare(left=first, comparators=[second, *_])
                | ast.Tuple(elts=[first, second, *_])
            ) if isinstance(transformations(first)[-1], ast.Call) and isinstance(transformations(second)[0], ast.Call):
                start = self.span(first)[1]
                separator = self.text[start : self.span(second)[0]].strip(' ()')
                problem = f'{separator!r} does not join transformations: {SYNTAX}'
                raise LineError(problem, self.text, self.text.index(separator, start), len(separator))

    def _check_bare_name(self, node: ast.expr, words: Sequence[str] = ()) -> None:
        name = dotted(node)
        if find(name):
            needs = ', '.join(f'{missing}=...' for missing in Call(ast.Call(node, [], [])).missing)
            raise self.error(f'{name!r} is not called: write {name}({needs})', node)
        if name:
            raise self._unknown(name, node, words)

    def _unknown(self, name: str, node: ast.expr, words: Sequence[str] = ()) -> LineError:
        hint = line_hint(name, [*words, *names()])
        quotes = f' (a string needs quotes: {name!r})' if words else ''
        return self.error(f'{name!r} is neither registered nor in optax{hint}{quotes}', node)
