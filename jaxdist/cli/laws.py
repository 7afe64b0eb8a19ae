"""`jaxdist laws`: algorithms and codecs against their laws, a user's own too."""

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from jaxdist.cli import entries, options
from jaxdist.laws import LawResult, check_entry


@dataclass(frozen=True)
class Laws:
    """Tests algorithms and codecs against their laws: those that all answer to, and those that each claims."""

    what: entries.What = ()
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
    for entry in entries.chosen(chosen.what, entries.every()):
        for line, verdicts in check_entry(entry, chosen.workers, chosen.seed).items():
            console.print('\n'.join([escape(line), *map(_text, verdicts)]))
            broken += sum(bool(verdict.problem) for verdict in verdicts)
    if broken:
        console.print(f'[red]{broken} {"law is" if broken == 1 else "laws are"} broken[/]')
        sys.exit(1)


def _text(verdict: LawResult) -> str:
    if not verdict.problem:
        return f'  holds   {escape(verdict.law)}'
    return f'  [red]broken[/]  {escape(verdict.law)}: {escape(verdict.problem)}'
