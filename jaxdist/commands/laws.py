"""`jaxdist laws`: algorithms and codecs against their laws, a user's own too."""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from jaxdist import registry
from jaxdist.commands import options
from jaxdist.laws import Verdict, check_entry
from jaxdist.script import load_script

What = tyro.conf.Positional[
    Annotated[tuple[str, ...], tyro.conf.arg(metavar='[NAME|FILE.py ...]', help_behavior_hint='(default: all of them)')]
]


@dataclass(frozen=True)
class Laws:
    """Tests algorithms and codecs against their laws: those that all answer to, and those that each claims."""

    what: What = ()
    """Names of algorithms or codecs, or Python files that register some."""
    workers: int = 4
    """How many workers, on as many emulated devices."""
    seed: int = 0
    """Of the gradients that they are tried with."""


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 1 if a law is broken."""
    chosen = options.parse(Laws(), arguments, 'laws')
    options.emulate(chosen.workers)
    console = Console(highlight=False, soft_wrap=True)
    broken = 0
    for entry in _entries(chosen.what):
        for line, verdicts in check_entry(entry, chosen.workers, chosen.seed).items():
            console.print('\n'.join([escape(line), *map(_text, verdicts)]))
            broken += sum(bool(verdict.problem) for verdict in verdicts)
    if broken:
        console.print(f'[red]{broken} {"law is" if broken == 1 else "laws are"} broken[/]')
        sys.exit(1)


def _text(verdict: Verdict) -> str:
    if not verdict.problem:
        return f'  holds   {escape(verdict.law)}'
    return f'  [red]broken[/]  {escape(verdict.law)}: {escape(verdict.problem)}'


def _entries(what: tuple[str, ...]) -> list[registry.Entry]:
    found: list[registry.Entry] = []
    for name in what:
        found += _of_file(Path(name)) if name.endswith('.py') else [_named(name)]
    return found or list(_known().values())


def _known() -> dict[str, registry.Entry]:
    return {**registry.codecs(), **registry.algorithms()}


def _named(name: str) -> registry.Entry:
    known = _known()
    if name not in known:
        close = registry.nearest(name, known)
        hint = f'; did you mean {close[0]!r}?' if close else f'; there are {", ".join(known)}'
        raise ValueError(f'no algorithm or codec {name!r}{hint}')
    return known[name]


def _of_file(path: Path) -> list[registry.Entry]:
    """What a file registers; one of jaxdist's own has done so already."""

    def registered() -> list[registry.Entry]:
        return [e for e in _known().values() if Path(inspect.getfile(e.make)).resolve() == path.resolve()]

    if not registered():
        load_script(path)
    found = registered()
    if not found:
        raise ValueError(
            f'{path} registers nothing: put @algorithm(...) or @codec(...) of jaxdist.registry on a function'
        )
    return found
