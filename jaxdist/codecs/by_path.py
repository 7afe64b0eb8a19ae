"""A codec for each parameter, chosen by its path."""

import re
from collections.abc import Mapping, Sequence

from jaxdist import laws
from jaxdist.codecs.codec import AnyCodec, PerTensor, Shape
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec


@codec(
    paper='none: a choice among codecs',
    examples={
        "by_path(rules={'.*': int8(block=64)})": (laws.error_at_most(0.5 / 127), laws.idempotent()),
        'by_path(rules={}, rest=int8(block=64))': (laws.error_at_most(0.5 / 127),),
    },
)
def by_path(rules: Mapping[str, AnyCodec | None], rest: AnyCodec | None = None) -> PerTensor:
    """The codec of the first rule whose regular expression matches a parameter's whole path, as `block0/up/kernel`.

    Args:
        rules: a codec for each regular expression; None for an exact mean in float32.
        rest: the codec of parameters that no rule matches; None for an exact mean in float32.

    Raises:
        InputError: a regular expression is not valid or, when parameters are given, matches none of them.

    >>> from jaxdist.codecs.int8 import int8
    >>> choice = by_path(rules={'.*bias': None}, rest=int8())
    >>> [codec is None for codec in choice.pick([('up/kernel', (8, 8)), ('up/bias', (8,))])]
    [False, True]
    """
    for pattern in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f'by_path: {pattern!r} is not a valid regular expression: {error}') from None

    def pick(tensors: Sequence[tuple[str, Shape]]) -> list[AnyCodec | None]:
        matched = [next((p for p in rules if re.fullmatch(p, path)), None) for path, _ in tensors]
        unused = [p for p in rules if not any(re.fullmatch(p, path) for path, _ in tensors)]
        # A misspelt rule would leave its parameters uncompressed without notice.
        if unused:
            raise InputError(
                f'by_path: {unused} match no parameter; the parameters are {[path for path, _ in tensors]}'
            )
        return [rest if pattern is None else rules[pattern] for pattern in matched]

    return PerTensor(pick)
