"""Leaves a run at once: without Python's end, in which JAX would wait for processes that are gone."""

import contextlib
import faulthandler
import os
import sys
import time
from typing import NoReturn

from jaxdist.core.control_characters import visible


def leave(code: int, words: str, *, linger: float = 0.0, stacks: bool = False) -> NoReturn:
    """Ends this process at once, after a line on standard error.

    Args:
        code: the exit code.
        words: the line; none if empty.
        linger: seconds to wait before. Process 0 leaves last: when it goes, JAX aborts the others, over their messages.
        stacks: whether the stacks of all threads are shown: this process is stuck.

    >>> import subprocess
    >>> program = 'from jaxdist.cluster.leaving import leave; leave(65, "another seed")'
    >>> subprocess.run([sys.executable, '-c', program], capture_output=True)
    CompletedProcess(args=..., returncode=65, stdout=b'', stderr=b'error: another seed\\n')
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
    time.sleep(linger)
    os._exit(code)
