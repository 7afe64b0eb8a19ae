"""How a command ends: errors for the user without a traceback, and of several processes all together."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.markup import escape

from jaxdist.cli.terminal import Terminal
from jaxdist.core.errors import JaxdistError


@contextmanager
def exits() -> Iterator[None]:
    """Ends the program with the exit code of an error that the block raises; waits for other processes if it does not.

    See `jaxdist.cluster.exits` for the codes.
    """
    try:
        yield
        _finish()
    except SystemExit:
        _finish()
        raise
    except BrokenPipeError:  # the reader of a pipe has ended, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(128 + signal.SIGPIPE, 'nobody reads the output')
    except KeyboardInterrupt:
        fail('stopped', 128 + signal.SIGINT)
    except Exception as error:
        cluster = _cluster()
        reason = cluster.explained(error) if cluster else error
        if isinstance(reason, JaxdistError):
            fail(str(reason), reason.exit_code)
        if cluster is None or cluster.current() is None:
            raise  # a mistake of ours: Python shows it, and ends with 1
        traceback.print_exc()
        _end(1, f'{type(error).__name__}: {error}')


def fail(text: str, code: int) -> NoReturn:
    """Prints an error, and ends the program, with other processes following."""
    Terminal(stderr=True).print(f'[red]error:[/] {escape(text)}')
    _end(code, text)


def _cluster() -> Any:
    """The package `jaxdist.cluster` if the command has imported it: those that do not need not wait for it."""
    return sys.modules.get('jaxdist.cluster')


def _end(code: int, words: str) -> NoReturn:
    if cluster := _cluster():
        cluster.end(code, words)
    sys.exit(code)


def _finish() -> None:
    if cluster := _cluster():
        cluster.finish()
