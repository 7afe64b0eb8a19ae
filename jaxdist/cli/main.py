"""`jaxdist`: the command line. It and its commands are the only place that prints."""

import linecache
import os
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from jaxdist.training.checkpoint import CheckpointError
from jaxdist.cli import compare, laws, listing, plan, train
from jaxdist.core.registry import nearest
from jaxdist.training.run import Diverged

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
    """Runs a command; what went wrong outside of the program is told without a traceback."""
    try:
        COMMANDS[name][0](arguments)
    except (CheckpointError, Diverged) as error:
        _fail(str(error), 1)
    except BrokenPipeError:  # nobody reads what is printed, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, ImportError, OSError) as error:
        if not _on_purpose(error):
            raise
        _fail(str(error), 2 if isinstance(error, ValueError | ImportError | FileNotFoundError) else 1)
    except KeyboardInterrupt:
        _fail('stopped', 128 + signal.SIGINT)


def _on_purpose(error: BaseException) -> bool:
    """Whether jaxdist itself raised the error, with a text for the user; any other is a mistake in the program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = trace.tb_frame.f_code.co_filename
    ours = Path(__file__).parent in Path(file).parents
    return ours and linecache.getline(file, trace.tb_lineno).lstrip().startswith('raise ')


def _fail(text: str, code: int) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f'[red]error:[/] {escape(text)}')
    sys.exit(code)


def _usage() -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print('usage: jaxdist COMMAND ...\n\nResearch on distributed optimisation, in JAX.\n')
    for name, (_, about) in COMMANDS.items():
        console.print(f'  {name:<12}{about}')
    console.print('\njaxdist COMMAND --help tells more.')
