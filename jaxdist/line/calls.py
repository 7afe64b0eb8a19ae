"""One call in an update line, beside the signature of the function that it names."""

import ast
from collections.abc import Iterable
from inspect import Parameter, signature

from jaxdist.core.registry import Entry, Kind, find, nearest

FILLED = ('axis', 'model')
"""Parameters of registered functions that are filled in: the worker axis, and of constraints the model."""


class Call:
    """A call whose name is known, and what the function's signature says of its arguments.

    Attributes:
        node: where it stands in the tree.
        name: the function's name, as the line writes it.
        make: the function.
        registered: whether the registry has it; else it is optax's.
        parameters: those that have a name, without `*args` and `**kwargs`.
        given: the arguments by the names of their parameters, in the order of the line.
        surplus: the arguments by position that the function does not take.

    Raises:
        LookupError: a name that is neither registered nor optax's.

    >>> call = Call(ast.parse('sgd(0.1, nesterov=True)', mode='eval').body)
    >>> list(call.given), call.missing, call.allows('momentum')
    (['learning_rate', 'nesterov'], [], True)
    """

    def __init__(self, node: ast.Call) -> None:
        self.node, self.name = node, dotted(node.func)
        found = find(self.name)
        if found is None:
            raise LookupError(f'unknown name {self.name!r}')
        self.registered = isinstance(found, Entry)
        self.make = found.make if isinstance(found, Entry) else found
        every = signature(self.make).parameters
        kinds = {parameter.kind for parameter in every.values()}
        variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        self.parameters = {name: p for name, p in every.items() if p.kind not in variadic}
        self._any_keyword = Parameter.VAR_KEYWORD in kinds
        taken = FILLED if self.registered else ()
        self.by_position = [
            n for n, p in self.parameters.items() if p.kind != Parameter.KEYWORD_ONLY and n not in taken
        ]
        self.surplus = [] if Parameter.VAR_POSITIONAL in kinds else node.args[len(self.by_position) :]
        by_keyword = {str(keyword.arg): keyword.value for keyword in node.keywords}
        self.given = dict(zip(self.by_position, node.args, strict=False)) | by_keyword

    @property
    def missing(self) -> list[str]:
        """The parameters without a default that the line does not give, but for those that `build` fills in."""
        needed = [name for name, p in self.parameters.items() if p.default is p.empty]
        return [name for name in needed if name not in self.given and not (self.registered and name in FILLED)]

    @property
    def takes(self) -> str:
        """What the function takes, for a message."""
        return f'it takes {", ".join(self.parameters) or "nothing"}'

    def allows(self, keyword: str) -> bool:
        """Whether the function takes a keyword of this name."""
        parameter = self.parameters.get(keyword)
        return self._any_keyword if parameter is None else parameter.kind != Parameter.POSITIONAL_ONLY


def dotted(node: ast.expr) -> str:
    """The name that a node writes, as `contrib.muon`; of anything else than a name, nothing.

    >>> dotted(ast.parse('contrib.muon', mode='eval').body), dotted(ast.parse('f().x', mode='eval').body)
    ('contrib.muon', '')
    """
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if dotted(value):
            return f'{dotted(value)}.{name}'
    return ''


def kind_of(node: ast.expr) -> Kind | None:
    """What kind of registered function a node calls; None for anything else.

    >>> kind_of(ast.parse('sgd(0.1)', mode='eval').body)
    """
    found = find(dotted(node.func)) if isinstance(node, ast.Call) else None
    return found.kind if isinstance(found, Entry) else None


def links(node: ast.expr) -> list[ast.expr]:
    """The links of a chain, in order; of anything else, itself.

    >>> len(links(ast.parse('a() | (b() | c())', mode='eval').body))
    3
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*links(node.left), *links(node.right)]
    return [node]


def is_constant(node: ast.expr) -> bool:
    """Whether a node is a number, with a sign or without, a string, True, False or None.

    >>> [is_constant(ast.parse(text, mode='eval').body) for text in ('-1e-3', "'a'", '2 * 3', "b'a'")]
    [True, True, False, False]
    """
    match node:
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=value)):
            return type(value) in (int, float)
        case ast.Constant(value=value):
            return value is None or isinstance(value, bool | int | float | str)
    return False


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """The end of a message: the candidates that look like `name`, if any does.

    >>> did_you_mean('learningrate', ['learning_rate', 'momentum'])
    ": did you mean 'learning_rate'?"
    """
    close = ' or '.join(repr(candidate) for candidate in nearest(name, candidates))
    return f': did you mean {close}?' if close else ''
