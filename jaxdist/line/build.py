"""From an update line to the optax transformation that it describes."""

import ast
from typing import Any

import optax

from jaxdist.line.calls import is_codec, links
from jaxdist.line.order import check_order
from jaxdist.line.reader import Reader
from jaxdist.wire import AXIS


def build(line: str, axis: str = AXIS) -> optax.GradientTransformationExtraArgs:
    """The optax transformation that a line describes.

    The line `a(k=v) | b(c(x=1))` means `optax.chain(a(k=v), b(c(x=1)))`; a single link is not put in a
    chain. Names are those of the registry, then of optax. A registered function with a parameter `axis` is
    given this `axis`, unless the line gives another.

    Raises:
        LineError: a mistake, with its place in the line and the nearest right name.

    >>> update = build('clip(1.0) | sgd(learning_rate=0.5)')
    >>> updates, _ = update.update({'w': -5.0}, update.init({'w': 0.0}))
    >>> float(updates['w'])
    0.5
    """
    reader = Reader(line)
    reader.check_links(reader.body)
    check_order(reader)
    return _Builder(reader, axis).chain(reader.body)


def build_codec(line: str, axis: str = AXIS) -> Any:
    """What a registered codec's function returns for a line such as `int8(block=64)`.

    Raises:
        LineError: a mistake, or a line that is anything but the call of one codec.

    >>> build_codec('sgd(0.1)')
    Traceback (most recent call last):
    jaxdist.line.reader.LineError: this is not a codec: write the call of one, as in int8(block=64)
        sgd(0.1)
        ^^^
    """
    reader = Reader(line)
    reader.check_value(reader.body)
    if not is_codec(reader.body):
        raise reader.error('this is not a codec: write the call of one, as in int8(block=64)', reader.body)
    return _Builder(reader, axis).value(reader.body)


class _Builder:
    """Makes the objects that a checked line describes, for workers on one axis."""

    def __init__(self, reader: Reader, axis: str) -> None:
        self.reader, self.axis = reader, axis

    def chain(self, node: ast.expr) -> optax.GradientTransformationExtraArgs:
        updates = [self._update(link) for link in links(node)]
        return optax.with_extra_args_support(updates[0] if len(updates) == 1 else optax.chain(*updates))

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Call():
                return self._result(node)
            case ast.BinOp():
                return self.chain(node)
            case ast.Tuple(elts=parts):
                return tuple(self.value(part) for part in parts)
            case ast.List(elts=parts):
                return [self.value(part) for part in parts]
            case ast.Dict(keys=keys, values=parts):
                return {self.value(key): self.value(part) for key, part in zip(keys, parts, strict=True) if key}
        return ast.literal_eval(node)

    def _result(self, node: ast.Call) -> Any:
        call = self.reader.call(node)
        args = [self.value(arg) for arg in node.args]
        keywords = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        if call.registered and 'axis' in call.parameters and 'axis' not in call.given:
            keywords['axis'] = self.axis
        try:
            return call.make(*args, **keywords)
        except Exception as error:
            problem = f'{call.name}(...) raised {type(error).__name__}: {error}'
            raise self.reader.error(problem, node) from error

    def _update(self, node: ast.expr) -> optax.GradientTransformation:
        result = self.value(node)
        if isinstance(result, optax.MultiSteps):
            return result.gradient_transformation()
        if isinstance(result, optax.GradientTransformation):
            return result
        what, hint = type(result).__name__, ''
        if callable(result):
            what, hint = (
                'a schedule',
                f'; give it to an optimiser, as in adamw(learning_rate={ast.unparse(node)})',
            )
        raise self.reader.error(f'this gives {what}, not an update{hint}', node)
