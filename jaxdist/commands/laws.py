"""`jaxdist laws`: algorithms and codecs against their laws, a user's own too."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from jaxdist import registry
from jaxdist.commands import options
from jaxdist.laws import check_entry


@dataclass(frozen=True)
class Laws:
    """Tests algorithms and codecs against their laws: those that all answer to, and those that each claims."""

    what: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar='NAME|FILE.py')]] = ()
    """Names of algorithms or codecs, or files that register some. Without any, all of jaxdist's."""
    workers: int = 4
    """How many workers, on as many emulated devices."""
    seed: int = 0
    """Of the gradients that they are tried with."""


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 1 if a law is broken."""
    chosen = options.parse(Laws, Laws(), arguments, 'laws', Laws.__doc__ or '')
    options.emulate(chosen.workers)
    console = Console(highlight=False, soft_wrap=True)
    broken = 0
    for entry in _entries(chosen.what):
        for line, verdicts in check_entry(entry, chosen.workers, chosen.seed).items():
            console.print(escape(line))
            for verdict in verdicts:
                mark = f'[red]broken[/]  {verdict.law}: {escape(verdict.problem)}' if verdict.problem else f'holds   {verdict.law}'
                console.print(f'  {mark}')
                broken += bool(verdict.problem)
    if broken:
        console.print(f'[red]{broken} laws are broken[/]')
        sys.exit(1)


def _entries(what: tuple[str, ...]) -> list[registry.Entry]:
    known = {**registry.codecs(), **registry.algorithms()}
    if not what:
        return list(known.values())
    found: list[registry.Entry] = []
    for name in what:
        if name.endswith('.py'):
            found += _registered_by(Path(name))
        elif name in known:
            found.append(known[name])
        else:
            close = registry.nearest(name, known)
            raise ValueError(f'no algorithm or codec {name!r}' + (f'; did you mean {close[0]!r}?' if close else ''))
    return found


def _registered_by(path: Path) -> list[registry.Entry]:
    """What a file registers when it is imported."""
    if not path.is_file():
        raise ValueError(f'there is no file {str(path)!r}')
    before = {**registry.codecs(), **registry.algorithms()}
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    new = [entry for name, entry in {**registry.codecs(), **registry.algorithms()}.items() if name not in before]
    if not new:
        raise ValueError(f'{path} registers nothing: put @algorithm(...) or @codec(...) of jaxdist.registry on a function')
    return new
