"""Short texts of several update lines, for tables and plots: what differs between the lines."""

import ast
from collections import Counter
from collections.abc import Sequence, Set

from jaxdist.line.calls import dotted, transformations
from jaxdist.line.reader import Reader

LONG, LONG_ARGUMENT = 48, 20
"""Arguments are left out of texts of more than `LONG` characters; if calls differ in an argument, only where its text
has more than `LONG_ARGUMENT`."""
OMITTED = '…'
"""Stands for arguments that are left out."""

_Calls = dict[str, list[ast.Call]]


def shorten(lines: Sequence[str]) -> list[str]:
    """Each line without the transformations that most lines have; empty for a line that has nothing else.

    A line that lacks one of them keeps those that not all lines have. Texts that are still long lose the arguments on
    which all calls of the function agree, and long ones on which most agree; `…` stands for them. Lines that differ
    get texts that differ: a text that two lines would share is given with more of its line.

    Args:
        lines: the update lines.

    Raises:
        LineError: a line has a mistake.

    >>> shorten(['mean() | adamw(1e-3)', 'mean(codec=int8()) | adamw(1e-3)'])
    ['mean()', 'mean(codec=int8())']
    >>> outer = 'outer=sgd(0.7, momentum=0.9, nesterov=True)'
    >>> shorten([f'adam(1e-3) | diloco(every={every}, {outer})' for every in (10, 30)])
    ['diloco(every=10, …)', 'diloco(every=30, …)']
    """
    split = [_split(line) for line in lines]
    texts = [[ast.unparse(call) for call in calls] for calls in split]
    counts = Counter(text for line in texts for text in set(line))
    in_most = {text for text, count in counts.items() if 2 * count > len(lines)}
    in_all = {text for text, count in counts.items() if count == len(lines)}
    by_name: _Calls = {}
    for call in (call for calls in split for call in calls if isinstance(call, ast.Call)):
        by_name.setdefault(dotted(call.func), []).append(call)
    choices = [
        _choices(calls, in_most if in_most <= set(own) else in_all, by_name)
        for calls, own in zip(split, texts, strict=True)
    ]
    return _distinct(choices, [' | '.join(line) for line in texts])


def _split(line: str) -> list[ast.expr]:
    reader = Reader(line)
    reader.check_chain(reader.body)
    return transformations(reader.body)


def _choices(calls: Sequence[ast.expr], common: Set[str], by_name: _Calls) -> list[str]:
    """Texts of a line, from the shortest, without the common transformations, to the full one."""
    choices = []
    for chosen in ([call for call in calls if ast.unparse(call) not in common], calls):
        text = ' | '.join(map(ast.unparse, chosen))
        if len(text) > LONG:
            choices.append(' | '.join(_without_common_arguments(call, by_name) for call in chosen))
        choices.append(text)
    return choices


def _without_common_arguments(node: ast.expr, by_name: _Calls) -> str:
    """A call's text without the arguments that all calls of the function have, and that are equal in all or most."""
    if not isinstance(node, ast.Call) or dotted(node.func) not in by_name:
        return ast.unparse(node)
    calls = [_arguments(call) for call in by_name[dotted(node.func)]]
    shown, omitted = [], False
    for name, value in _arguments(node).items():
        values = [call[name] for call in calls if name in call]
        equal = sum(ast.unparse(other) == ast.unparse(value) for other in values)
        most_agree = 2 * equal > len(calls) and len(ast.unparse(value)) > LONG_ARGUMENT
        if len(values) == len(calls) and (equal == len(calls) or most_agree):
            omitted = True
            continue
        nested: _Calls = {}
        for other in (other for other in values if isinstance(other, ast.Call)):
            nested.setdefault(dotted(other.func), []).append(other)
        text = _without_common_arguments(value, nested)
        shown.append(text if isinstance(name, int) else f'{name}={text}')
    return f'{dotted(node.func)}({", ".join([*shown, *([OMITTED] if omitted else [])])})'


def _arguments(call: ast.Call) -> dict[int | str | None, ast.expr]:
    """The values of a call's arguments, by position or keyword."""
    return {**dict(enumerate(call.args)), **{keyword.arg: keyword.value for keyword in call.keywords}}


def _distinct(choices: Sequence[Sequence[str]], full: Sequence[str]) -> list[str]:
    """The shortest choices of which no two are equal, save those of equal lines."""
    at = [0] * len(choices)
    while True:
        texts = [choice[k] for choice, k in zip(choices, at, strict=True)]
        # A text should also differ from the line that a reader sees in place of an empty one.
        shown = [text or line for text, line in zip(texts, full, strict=True)]
        clash = [one or other for one, other in zip(_repeated(texts, full), _repeated(shown, full), strict=True)]
        if not any(clash):
            return texts
        at = [min(k + more, len(choice) - 1) for choice, k, more in zip(choices, at, clash, strict=True)]


def _repeated(texts: Sequence[str], full: Sequence[str]) -> list[bool]:
    """Whether each text is also that of another line."""
    count = Counter(text for text, _ in set(zip(texts, full, strict=True)))
    return [count[text] > 1 for text in texts]
