"""`jaxdist algorithms`: what an update line can be made of."""

import inspect
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from jaxdist import registry
from jaxdist.commands import options


@dataclass(frozen=True)
class Listing:
    """Lists the registered algorithms and codecs: their parameters, papers and the laws that they claim."""


def main(arguments: list[str]) -> None:
    """Runs the command."""
    options.parse(Listing(), arguments, 'algorithms')
    console = Console(highlight=False)
    for title, entries in (('algorithms', registry.algorithms()), ('codecs', registry.codecs())):
        console.print(f'[bold]{title}[/]')
        for entry in entries.values():
            console.print(Padding(escape(_call(entry)), (1, 0, 0, 2)))
            for text in (entry.summary, entry.paper, f'claims: {", ".join(_claims(entry))}'):
                console.print(Padding(escape(text), (0, 0, 0, 6)))
        console.print()
    console.print("A line can also hold optax's own optimisers, transformations and schedules, by their names.")


def _call(entry: registry.Entry) -> str:
    """How a line calls it: every parameter, with its default."""
    parameters = inspect.signature(entry.make).parameters.values()
    texts = [p.name if p.default is p.empty else f'{p.name}={p.default!r}' for p in parameters if p.name != 'axis']
    return f'{entry.name}({", ".join(texts)})'


def _claims(entry: registry.Entry) -> list[str]:
    """The laws that any of its examples claims, each once."""
    return list(dict.fromkeys(law.name for laws in entry.examples.values() for law in laws)) or ['nothing']
