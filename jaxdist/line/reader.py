"""What an update line says, as a tree from `ast`: every mistake is found here, and nothing is called."""

import ast
import re
from collections.abc import Sequence

from jaxdist.core.errors import InputError
from jaxdist.core.registry import Kind, find, names
from jaxdist.line.calls import Call, did_you_mean, dotted, is_constant, kind_of, links

LINKS = 'links are joined by |, as in mean() | adamw(learning_rate=1e-3)'
VALUES = 'a value is a number, a string, True, False, None, a tuple, a list, a dict or a call'
ELSEWHERE = {
    'algorithm': '{0} works on gradients or parameters: it belongs into the update line',
    'codec': '{0} is a codec: give it to an algorithm, as in mean(codec={0}())',
    'dual': '{0} moves multipliers: it belongs into the dual line of constraints (constraints.dual)',
    'constraint': '{0} is a constraint: it belongs into the list of those that are to hold (constraints.hold)',
}
"""What to say of a registered function, by its kind, that stands where a link of another kind must."""
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
    """A mistake in an update line; the message has what is wrong, the line, and a caret under the place.

    Attributes:
        problem: what is wrong.
        line: the line.
        column: the place, in characters from the left, from 0.
        width: how many characters are wrong.
    """

    def __init__(self, problem: str, line: str, column: int, width: int = 1) -> None:
        self.problem, self.line, self.column, self.width = problem, line, column, width
        blank = re.sub(r'[^\t]', ' ', line[:column])
        super().__init__(f'{problem}\n    {line}\n    {blank}{"^" * width}')


class Reader:
    """One line: its text, its tree, and checks of what may stand where.

    Attributes:
        kind: of the registered functions that can be links: `algorithm`, or `dual` in a dual line.
        text: the line without spaces around it.
        body: the tree, not checked yet.

    >>> reader = Reader('clip(1.0) | sgd(0.1)')
    >>> reader.check_links(reader.body)
    >>> [reader.span(link) for link in links(reader.body)]
    [(0, 9), (12, 20)]
    """

    def __init__(self, text: str, kind: Kind = 'algorithm') -> None:
        self.kind = kind
        # One line, so that a caret can point into it; one character for one, so that nothing moves.
        self.text = re.sub(r'[\n\r\f]', ' ', text).strip()
        if not self.text:
            raise LineError(f'the line is empty: {LINKS}', self.text, 0)
        try:
            self.body = ast.parse(self.text, mode='eval').body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            column = (getattr(error, 'offset', None) or len(self.text) + 1) - 1
            message = getattr(error, 'msg', None) or str(error)
            raise LineError(f'{message}; {LINKS}', self.text, column) from None
        rest = self.text[self.span(self.body)[1] :].lstrip(' )')
        if rest:
            raise LineError('a line has no comments', self.text, len(self.text) - len(rest), len(rest))

    def span(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        """Where a node begins and ends, in characters: `ast` counts bytes."""
        data = self.text.encode()
        return len(data[: node.col_offset].decode()), len(data[: node.end_col_offset].decode())

    def error(self, problem: str, node: ast.expr | ast.keyword) -> LineError:
        """The mistake with carets under the node: of a call or a keyword, under its name alone."""
        start, end = self.span(node.func if isinstance(node, ast.Call) else node)
        if isinstance(node, ast.keyword):
            end = start + len(node.arg or '**')
        return LineError(problem, self.text, start, end - start)

    def check_links(self, node: ast.expr) -> None:
        """Raises LineError unless each link is a call that can be one."""
        for link in links(node):
            self._check_joint(link)
            if not isinstance(link, ast.Call):
                self._check_bare_name(link)
                raise self.error(f'a link is a call; {LINKS}', link)
            kind = kind_of(link)
            if kind is not None and kind != self.kind:
                raise self.error(ELSEWHERE[kind].format(dotted(link.func)), link)
            self._check_call(link)

    def check_value(self, node: ast.expr) -> None:
        """Raises LineError unless this is a constant, a container, a call or a chain of calls."""
        match node:
            case ast.Call():
                self._check_call(node)
            case ast.BinOp(op=ast.BitOr()):
                self.check_links(node)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self.check_value(part)
            case ast.Dict():
                self._check_dict(node)
            case _ if not is_constant(node):
                self._check_joint(node)
                self._check_bare_name(node, ('True', 'False', 'None'))
                raise self.error(f'{REFUSED.get(type(node), "this")} is not allowed: {VALUES}', node)

    def call(self, node: ast.Call) -> Call:
        """The call with the function that its name stands for."""
        name = dotted(node.func)
        if not name:
            raise self.error(f'only a name can be called; {LINKS}', node)
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
        taken = call.by_position[: len(call.node.args)]
        for keyword in call.node.keywords:
            name = str(keyword.arg)
            if name in taken:
                raise self.error(f'{call.name} is given {name!r} twice', keyword)
            if not call.allows(name):
                hint = did_you_mean(name, call.parameters)
                raise self.error(f'{call.name} has no keyword {name!r}{hint} ({call.takes})', keyword)
            taken.append(name)

    def _check_dict(self, node: ast.Dict) -> None:
        seen = set()
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None or not is_constant(key):
                raise self.error('a key of a dict is a number, a string, True, False or None', key or value)
            if (name := ast.literal_eval(key)) in seen:
                raise self.error(f'key {name!r} is given twice', key)
            seen.add(name)
            self.check_value(value)

    def _check_joint(self, node: ast.expr) -> None:
        match node:
            case (
                ast.BinOp(left=first, right=second)
                | ast.BoolOp(values=[first, second, *_])
                | ast.Compare(left=first, comparators=[second, *_])
                | ast.Tuple(elts=[first, second, *_])
            ) if isinstance(links(first)[-1], ast.Call) and isinstance(links(second)[0], ast.Call):
                start = self.span(first)[1]
                joint = self.text[start : self.span(second)[0]].strip(' ()')
                problem = f'{joint!r} does not join links: {LINKS}'
                raise LineError(problem, self.text, self.text.index(joint, start), len(joint))

    def _check_bare_name(self, node: ast.expr, words: Sequence[str] = ()) -> None:
        name = dotted(node)
        if find(name):
            needs = ', '.join(f'{missing}=...' for missing in Call(ast.Call(node, [], [])).missing)
            raise self.error(f'{name!r} is not called: write {name}({needs})', node)
        if name:
            raise self._unknown(name, node, words)

    def _unknown(self, name: str, node: ast.expr, words: Sequence[str] = ()) -> LineError:
        hint = did_you_mean(name, [*words, *names()])
        quotes = f' (a string needs quotes: {name!r})' if words else ''
        return self.error(f'{name!r} is neither registered nor in optax{hint}{quotes}', node)
