"""Arguments that select algorithms, codecs or constraints: names, or Python files that register some."""

import inspect
from pathlib import Path
from typing import Annotated

import tyro

from jaxdist.core import registry
from jaxdist.core.errors import InputError
from jaxdist.core.spelling import nearest
from jaxdist.training.user_code import load_script

Names = tyro.conf.Positional[
    Annotated[tuple[str, ...], tyro.conf.arg(metavar='[NAME|FILE.py ...]', help_behavior_hint='(default: all of them)')]
]


def chosen(names: tuple[str, ...], known: dict[str, registry.Entry]) -> list[registry.Entry]:
    """The registry entries that names and files select; all known entries if `names` is empty.

    Raises:
        InputError: no entry has the name, or the file registers nothing.

    >>> [entry.name for entry in chosen(('delay',), registry.algorithms())]
    ['delay']
    """
    selected: list[registry.Entry] = []
    for name in names:
        kinds = {entry.kind for entry in known.values()}
        selected += _of_file(Path(name), kinds) if name.endswith('.py') else [_named(name, known)]
    return selected or list(known.values())


def constraints() -> dict[str, registry.Entry]:
    """All constraints, and the transformations and penalties for their multipliers.

    >>> 'squared_norm' in constraints() and 'nupi' in constraints()
    True
    """
    return {**registry.constraints(), **registry.duals()}


def every() -> dict[str, registry.Entry]:
    """All codecs and algorithms.

    >>> 'int8' in every() and 'mean' in every()
    True
    """
    return {**registry.codecs(), **registry.algorithms()}


def _named(name: str, known: dict[str, registry.Entry]) -> registry.Entry:
    if name not in known:
        close = nearest(name, known)
        hint = f'; did you mean {close[0]!r}?' if close else f'; there are {", ".join(known)}'
        raise InputError(f'there is no {" or ".join(sorted({e.kind for e in known.values()}))} {name!r}{hint}')
    return known[name]


def _of_file(path: Path, kinds: set[registry.Kind]) -> list[registry.Entry]:
    """The entries of these kinds that a file registers, run first if it is not one of jaxdist's own files."""

    def registered() -> list[registry.Entry]:
        known = [
            entry
            for entry in {**every(), **constraints(), **registry.graphs(), **registry.rules()}.values()
            if entry.kind in kinds
        ]
        return [entry for entry in known if Path(inspect.getfile(entry.make)).resolve() == path.resolve()]

    if not registered():
        load_script(path)
    entries = registered()
    if not entries:
        decorators = ' or '.join(f'@{kind}(...)' for kind in sorted(kinds))
        raise InputError(f'{path} registers nothing: put {decorators} of jaxdist.core.registry on a function')
    return entries
