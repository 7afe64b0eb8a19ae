"""Errors of checkpoints."""

import os
import re

from jaxdist.core.errors import JaxdistError


class CheckpointError(JaxdistError):
    """A checkpoint cannot be written or read; the message names it, the folder and the reason."""

    exit_code = 1


class MismatchError(CheckpointError):
    """An intact checkpoint has other leaves than the requested state: it belongs to another experiment."""


class InUseError(CheckpointError):
    """Another process uses the folder."""


class DamageError(CheckpointError):
    """One checkpoint is unreadable or altered; the message is the reason."""


def reason(error: Exception) -> str:
    """Returns the operating system's message for `error`, or else its type and the first line of its text, shortened.

    >>> reason(ValueError("RESOURCE_EXHAUSTED: Failed to write ... [os_error_code='28']"))
    'No space left on device'
    >>> reason(ValueError('bad header\\nlong trace'))
    'ValueError: bad header'
    """
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    line = (str(error).splitlines() or [''])[0]
    return f'{type(error).__name__}: {line[:300]}'
