"""`jaxdist`: the command line. It and its commands are the only place that prints."""

import os
import signal
import sys

from rich.console import Console
from rich.markup import escape

from jaxdist.cli import compare, laws, listing, plan, train
from jaxdist.core.errors import JaxdistError
from jaxdist.core.registry import nearest

COMMANDS = {
    'train': (train.main, 'train an experiment, or go on with a run'),
    'plan': (plan.main, 'show what an experiment will send and hold'),
    'compare': (compare.main, 'run several update lines side by side and write a report'),
    'laws': (laws.main, 'test algorithms and codecs, your own too, against their laws'),
    'algorithms': (listing.algorithms, 'list the algorithms of update lines, and what they send'),
    'codecs': (listing.codecs, 'list the codecs of what is sent, and their bytes'),
    'constraints': (listing.constraints, 'list constraints, and what moves their multipliers'),
}


def main() -> None:
    """The program `jaxdist`. Ends with 0, with 1 where a run or a law failed, with 2 where the call was wrong."""
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
    """Runs a command; an error that was raised for the user is printed without a traceback."""
    try:
        COMMANDS[name][0](arguments)
    except JaxdistError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # nobody reads what is printed, as after `| head`
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
    for name, (_, about) in COMMANDS.items():
        console.print(f'  {name:<12}{about}')
    console.print('\njaxdist COMMAND --help tells more.')
