"""Which algorithms and codecs a command is about: names, or Python files that register some."""

import inspect
from pathlib import Path
from typing import Annotated

import tyro

from jaxdist import registry
from jaxdist.script import load_script

What = tyro.conf.Positional[
    Annotated[tuple[str, ...], tyro.conf.arg(metavar='[NAME|FILE.py ...]', help_behavior_hint='(default: all of them)')]
]


def chosen(what: tuple[str, ...], known: dict[str, registry.Entry]) -> list[registry.Entry]:
    """The entries that names and files stand for; all that are known for none.

    Raises:
        ValueError: no entry has the name, or the file registers nothing.

    >>> [entry.name for entry in chosen(('delay',), registry.algorithms())]
    ['delay']
    """
    found: list[registry.Entry] = []
    for name in what:
        found += _of_file(Path(name)) if name.endswith('.py') else [_named(name, known)]
    return found or list(known.values())


def every() -> dict[str, registry.Entry]:
    """All codecs and algorithms.

    >>> 'int8' in every() and 'mean' in every()
    True
    """
    return {**registry.codecs(), **registry.algorithms()}


def _named(name: str, known: dict[str, registry.Entry]) -> registry.Entry:
    if name not in known:
        close = registry.nearest(name, known)
        hint = f'; did you mean {close[0]!r}?' if close else f'; there are {", ".join(known)}'
        raise ValueError(f'there is no {" or ".join(sorted({e.kind for e in known.values()}))} {name!r}{hint}')
    return known[name]


def _of_file(path: Path) -> list[registry.Entry]:
    """What a file registers; one of jaxdist's own has done so already."""

    def registered() -> list[registry.Entry]:
        return [e for e in every().values() if Path(inspect.getfile(e.make)).resolve() == path.resolve()]

    if not registered():
        load_script(path)
    found = registered()
    if not found:
        raise ValueError(
            f'{path} registers nothing: put @algorithm(...) or @codec(...) of jaxdist.registry on a function'
        )
    return found
