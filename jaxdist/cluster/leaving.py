"""Leaves a run at once: without Python's end, in which JAX would wait for processes that are gone."""

import contextlib
import faulthandler
import os
import sys
import time
from typing import NoReturn

from jaxdist.core.control_characters import visible

LINGER = 2.0
"""Seconds by which process 0 leaves last: when it goes, JAX aborts the others, over their own messages."""


def leave(code: int, words: str, *, last: bool = False, stacks: bool = False) -> NoReturn:
    """Ends this process at once, after a line on standard error.

    Args:
        code: the exit code.
        words: the line; none if empty.
        last: whether it lingers, as process 0.
        stacks: whether the stacks of all threads are shown: this process is stuck.

    >>> leave(65, '')  # doctest: +SKIP
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    clear = b'\r\x1b[K\x1b[?25h' if os.isatty(2) else b''  # over the live line, which hides the cursor
    try:
        if words:
            os.write(2, clear + f'error: {visible(words)}\n'.encode())
        if stacks:
            faulthandler.dump_traceback(2, all_threads=True)
    except OSError:  # nobody reads it any more
        pass
    if last:
        time.sleep(LINGER)
    os._exit(code)
