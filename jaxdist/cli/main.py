"""The program `jaxdist`. Nothing outside this package prints."""

import importlib
import os
import signal
import sys

from rich.console import Console
from rich.markup import escape

from jaxdist.core.errors import JaxdistError
from jaxdist.core.spelling import nearest

COMMANDS = {  # imported when they are called, so that none waits for what another needs
    'init': ('init', 'main', 'write a starter: a model, data and an algorithm of your own'),
    'train': ('train', 'main', 'train an experiment, or resume a run'),
    'plan': ('plan', 'main', 'show the bytes that an experiment sends and stores, before it runs'),
    'compare': ('compare', 'main', 'run several update lines on the same data, and write a report'),
    'tune': ('tune', 'main', 'give each variant the same number of trials, and compare them at their best'),
    'laws': ('laws', 'main', 'test algorithms and codecs, also your own, against their laws'),
    'algorithms': ('listing', 'algorithms', 'list the algorithms of update lines, and the bytes that they send'),
    'codecs': ('listing', 'codecs', 'list the codecs for gradient compression, and the bytes that they send'),
    'constraints': ('listing', 'constraints', 'list constraints, transformations of dual lines, and penalties'),
}


def main() -> None:
    """Runs the program `jaxdist`. Exits with 0, with 1 if a run or a law fails, and with 2 if the call is wrong."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        _usage()
    elif name not in COMMANDS:
        close = nearest(name, COMMANDS)
        hint = f'; did you mean {close[0]}?' if close else '.'
        _fail(f'no command {name!r}{hint} There are {", ".join(COMMANDS)}', 2)
    else:
        _call(name, arguments)


def _call(name: str, arguments: list[str]) -> None:
    """Runs a command; errors for the user are printed without a traceback."""
    try:
        module, function, _ = COMMANDS[name]
        getattr(importlib.import_module(f'jaxdist.cli.{module}'), function)(arguments)
    except JaxdistError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of a pipe has ended, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        _fail('stopped', 128 + signal.SIGINT)


def _fail(text: str, code: int) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f'[red]error:[/] {escape(text)}')
    sys.exit(code)


def _usage() -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print('usage: jaxdist COMMAND ...\n\nResearch on distributed optimisation, in JAX.\n')
    for name, (_, _, about) in COMMANDS.items():
        console.print(f'  {name:<12}{about}')
    console.print('\nOptions of a command: jaxdist COMMAND --help')
