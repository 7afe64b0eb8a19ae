"""A call in an update line, matched with the signature of its function."""

import ast
from collections.abc import Iterable
from inspect import Parameter, signature

from jaxdist.core.registry import Entry, Kind, find
from jaxdist.core.spelling import nearest

FILLED = ('axis', 'model')
"""Parameters of registered functions that are filled in: the worker axis, and for constraints the model."""


class Call:
    """A call of a known function, with its arguments assigned to the function's parameters.

    Attributes:
        node: the call in the line's tree.
        name: the function's name, as the line writes it.
        make: the function.
        registered: whether the function is in the registry; else it is one of optax.
        parameters: the function's parameters by name, without `*args` and `**kwargs`.
        by_position: the names of parameters that a line may give by position.
        given: the arguments by the names of their parameters, in the order of the line.
        surplus: positional arguments beyond those that the function takes.

    Raises:
        LookupError: the name is neither registered nor in optax.

    >>> call = Call(ast.parse('sgd(0.1, nesterov=True)', mode='eval').body)
    >>> list(call.given), call.missing, call.allows('momentum')
    (['learning_rate', 'nesterov'], [], True)
    """

    def __init__(self, node: ast.Call) -> None:
        self.node, self.name = node, dotted(node.func)
        function = find(self.name)
        if function is None:
            raise LookupError(f'unknown name {self.name!r}')
        self.registered = isinstance(function, Entry)
        self.make = function.make if isinstance(function, Entry) else function
        every = signature(self.make).parameters
        kinds = {parameter.kind for parameter in every.values()}
        variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        self.parameters = {name: p for name, p in every.items() if p.kind not in variadic}
        self._any_keyword = Parameter.VAR_KEYWORD in kinds
        filled = FILLED if self.registered else ()
        self.by_position = [
            n for n, p in self.parameters.items() if p.kind != Parameter.KEYWORD_ONLY and n not in filled
        ]
        self.surplus = [] if Parameter.VAR_POSITIONAL in kinds else node.args[len(self.by_position) :]
        by_keyword = {str(keyword.arg): keyword.value for keyword in node.keywords}
        self.given = dict(zip(self.by_position, node.args, strict=False)) | by_keyword

    @property
    def missing(self) -> list[str]:
        """The parameters without a default that the line does not give and that are not filled in."""
        needed = [name for name, p in self.parameters.items() if p.default is p.empty]
        return [name for name in needed if name not in self.given and not (self.registered and name in FILLED)]

    @property
    def takes(self) -> str:
        """The function's parameters, as text for a message."""
        return f'it takes {", ".join(self.parameters) or "nothing"}'

    def allows(self, keyword: str) -> bool:
        """Whether the function has a keyword of this name."""
        parameter = self.parameters.get(keyword)
        return self._any_keyword if parameter is None else parameter.kind != Parameter.POSITIONAL_ONLY


def dotted(node: ast.expr) -> str:
    """The dotted name that a node is, such as `contrib.muon`; empty if it is not a name.

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
    """The kind of registered function that a node calls; None for anything else.

    >>> kind_of(ast.parse('sgd(0.1)', mode='eval').body)
    """
    function = find(dotted(node.func)) if isinstance(node, ast.Call) else None
    return function.kind if isinstance(function, Entry) else None


def transformations(node: ast.expr) -> list[ast.expr]:
    """The parts of a chain joined by `|`, in order; a node that is no chain is the only part.

    >>> len(transformations(ast.parse('a() | (b() | c())', mode='eval').body))
    3
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*transformations(node.left), *transformations(node.right)]
    return [node]


def is_constant(node: ast.expr) -> bool:
    """Whether a node is a number, signed or not, a string, True, False or None.

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
    """The end of a message: the candidates that are similar to `name`; empty if there are none.

    >>> did_you_mean('learningrate', ['learning_rate', 'momentum'])
    ": did you mean 'learning_rate'?"
    """
    close = ' or '.join(repr(candidate) for candidate in nearest(name, candidates))
    return f': did you mean {close}?' if close else ''
