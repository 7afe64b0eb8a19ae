"""`jaxdist`: the command line. It and its commands are the only place that prints."""

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import jaxdist
from jaxdist.checkpoint import CheckpointError
from jaxdist.commands import compare, laws, listing, plan, train
from jaxdist.registry import nearest
from jaxdist.run import Diverged

COMMANDS = {
    'train': (train.main, 'train an experiment, or go on with a run'),
    'plan': (plan.main, 'show what an experiment will send and hold'),
    'compare': (compare.main, 'run several update lines side by side and write a report'),
    'laws': (laws.main, 'test algorithms and codecs, your own too, against their laws'),
    'algorithms': (listing.main, 'list what an update line can be made of'),
}


def main() -> None:
    """The program `jaxdist`."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        _usage()
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if name not in COMMANDS:
        close = nearest(name, COMMANDS)
        hint = f'; did you mean {close[0]}?' if close else ''
        console.print(f'[red]error:[/] no command {escape(repr(name))}{hint} There are {", ".join(COMMANDS)}.')
        sys.exit(2)
    try:
        COMMANDS[name][0](arguments)
    except (CheckpointError, Diverged) as error:
        console.print(f'[red]error:[/] {escape(str(error))}')
        sys.exit(1)
    except (ValueError, ImportError, OSError) as error:
        if not _ours(error):
            raise
        console.print(f'[red]error:[/] {escape(str(error))}')
        sys.exit(2)
    except KeyboardInterrupt:
        console.print('stopped at once; what was saved before is in the run folder')
        sys.exit(130)


def _ours(error: BaseException) -> bool:
    """Whether jaxdist itself raised the error: it then says what is wrong, and needs no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()
    return Path(jaxdist.__file__).parent in raised_in.parents


def _usage() -> None:
    console = Console(highlight=False)
    console.print('usage: jaxdist COMMAND ...\n\nResearch on distributed optimisation, in JAX.\n')
    for name, (_, about) in COMMANDS.items():
        console.print(f'  {name:<12}{about}')
    console.print('\njaxdist COMMAND --help tells more.')
