"""The program `jaxdist`. Nothing outside this package prints."""

import importlib
import sys

from jaxdist.cli.failing import exits, fail
from jaxdist.cli.terminal import Terminal, visible_output
from jaxdist.core.spelling import nearest

COMMANDS = {  # imported when they are called, so that none waits for what another needs
    'init': ('init', 'main', 'write a starter: a model, data and an algorithm of your own'),
    'train': ('train', 'main', 'train an experiment, or resume a run'),
    'learners': ('learners', 'main', 'train by independent learners, whose rounds close with a quorum'),
    'plan': ('plan', 'main', 'show the bytes that an experiment sends and stores, before it runs'),
    'compare': ('compare', 'main', 'run several update lines on the same data, and write a report'),
    'tune': ('tune', 'main', 'give each variant the same number of trials, and compare them at their best'),
    'laws': ('laws', 'main', 'test algorithms and codecs, also your own, against their laws'),
    'algorithms': ('listing', 'algorithms', 'list the algorithms of update lines, and the bytes that they send'),
    'codecs': ('listing', 'codecs', 'list the codecs for gradient compression, and the bytes that they send'),
    'graphs': ('listing', 'graphs', 'list the graphs on which workers gossip, and their spectral gaps'),
    'rules': ('listing', 'rules', 'list the rules of a server at which messages arrive by a clock'),
    'constraints': ('listing', 'constraints', 'list constraints, transformations of dual lines, and penalties'),
}


def main() -> None:
    """Runs the program `jaxdist`. Exits with 0, or as in `jaxdist.cluster.exits`."""
    with visible_output():
        _main(*(sys.argv[1:] or ['--help']))


def _main(name: str, *arguments: str) -> None:
    if name in ('-h', '--help'):
        _usage()
    elif name not in COMMANDS:
        close = nearest(name, COMMANDS)
        hint = f'; did you mean {close[0]}?' if close else '.'
        fail(f'no command {name!r}{hint} There are {", ".join(COMMANDS)}', 2)
    else:
        _call(name, list(arguments))


def _call(name: str, arguments: list[str]) -> None:
    """Runs a command."""
    module, function, _ = COMMANDS[name]
    with exits():
        getattr(importlib.import_module(f'jaxdist.cli.{module}'), function)(arguments)


def _usage() -> None:
    console = Terminal()
    console.print('usage: jaxdist COMMAND ...\n\nResearch on distributed optimisation, in JAX.\n')
    for name, (_, _, about) in COMMANDS.items():
        console.print(f'  {name:<12}{about}')
    console.print('\nOptions of a command: jaxdist COMMAND --help')
