"""Builds the objects that a checked line describes."""

import ast
from typing import Any

import optax

from jaxdist.core.protocol import harmless
from jaxdist.line.calls import dotted, kind_of, transformations
from jaxdist.line.order import HARMLESS
from jaxdist.line.reader import Reader


class Builder:
    """Builds the objects that a checked line describes, with the parameters `axis` and `model` filled in."""

    def __init__(self, reader: Reader, axis: str, model: Any = None) -> None:
        self.reader, self.filled = reader, {'axis': axis, 'model': model}

    def chain(self, node: ast.expr) -> optax.GradientTransformationExtraArgs:
        return self.parts(transformations(node))

    def parts(self, parts: list[ast.expr]) -> optax.GradientTransformationExtraArgs:
        updates = [self._update(part) for part in parts] or [optax.identity()]
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
        if call.registered:  # by keyword only: a parameter that is filled in may come before one given by position
            args, keywords = [], {name: self.value(given) for name, given in call.given.items()}
            keywords |= {n: x for n, x in self.filled.items() if n in call.parameters and n not in call.given}
        else:
            args = [self.value(arg) for arg in node.args]
            keywords = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        try:
            return call.make(*args, **keywords)
        except Exception as error:
            problem = f'{call.name}(...) raised {type(error).__name__}: {error}'
            raise self.reader.error(problem, node) from error

    def _update(self, node: ast.expr) -> optax.GradientTransformation:
        if kind_of(node) == 'rule':
            raise self.reader.error(
                'messages arrive by a clock: train a line with a rule of a server in an experiment, with clock.compute',
                node,
            )
        result = self.value(node)
        if isinstance(result, optax.MultiSteps):
            # Its own conversion would drop the extra arguments of `update`.
            return optax.GradientTransformationExtraArgs(result.init, result.update)
        if isinstance(result, optax.GradientTransformation):
            return harmless(result) if isinstance(node, ast.Call) and dotted(node.func) in HARMLESS else result
        if callable(result):
            hint = f'give it to an optimiser, as in adamw(learning_rate={ast.unparse(node)})'
            raise self.reader.error(f'this is a schedule, not a transformation; {hint}', node)
        raise self.reader.error(f'this is of type {type(result).__name__}, not a transformation', node)
