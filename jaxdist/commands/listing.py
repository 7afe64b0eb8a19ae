"""`jaxdist algorithms`: what an update line can be made of."""

import inspect
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxdist import registry
from jaxdist.commands import options


@dataclass(frozen=True)
class Listing:
    """Lists the registered algorithms and codecs: their parameters, papers and the laws that they claim."""


def main(arguments: list[str]) -> None:
    """Runs the command."""
    options.parse(Listing, Listing(), arguments, 'algorithms', Listing.__doc__ or '')
    console = Console(highlight=False)
    for title, entries in (('algorithms', registry.algorithms()), ('codecs', registry.codecs())):
        table = Table(title, 'what it does', 'paper', 'claims')
        for name, entry in entries.items():
            parameters = [str(p).split(':')[0] for p in inspect.signature(entry.make).parameters.values() if p.name != 'axis']
            claims = dict.fromkeys(law.name for laws in entry.examples.values() for law in laws)
            table.add_row(f'{name}({", ".join(parameters)})', escape(entry.summary), escape(entry.paper), ', '.join(claims))
        console.print(table)
    console.print("A line can also hold optax's own optimisers, transformations and schedules, by their names.")
