"""`jaxdist laws`: tests algorithms and codecs, also a user's, against their laws."""

import sys
from dataclasses import dataclass

from rich.markup import escape

from jaxdist.cli import entries, options
from jaxdist.cli.compilation_cache import keep_programs
from jaxdist.cli.terminal import Terminal
from jaxdist.laws import LawResult, check_entry


@dataclass(frozen=True)
class Laws:
    """Tests algorithms and codecs against their laws: the universal ones, and those that each claims."""

    names: entries.Names = ()
    """Names of algorithms or codecs, or Python files that register some."""
    workers: int = 4
    """Number of workers, on as many emulated devices."""
    seed: int = 0
    """Seed of the gradients of the tests."""
    compilation_cache: options.CompilationCache = ''


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 1 if a law is broken."""
    chosen = options.parse(Laws(), arguments, 'laws')
    options.emulate(chosen.workers)
    console = Terminal()
    if kept := keep_programs(chosen.compilation_cache):
        console.print(escape(kept))
    broken = 0
    for entry in entries.chosen(chosen.names, entries.every()):
        for line, results in check_entry(entry, chosen.workers, chosen.seed).items():
            console.print('\n'.join([escape(line), *map(_text, results)]))
            if not entry.examples[line]:
                console.print('  [yellow]claims nothing[/]: give the example a law that says what it does')
            broken += sum(bool(result.problem) for result in results)
    if broken:
        console.print(f'[red]{broken} {"law is" if broken == 1 else "laws are"} broken[/]')
        sys.exit(1)


def _text(result: LawResult) -> str:
    if not result.problem:
        return f'  holds   {escape(result.law)}'
    return f'  [red]broken[/]  {escape(result.law)}: {escape(result.problem)}'
