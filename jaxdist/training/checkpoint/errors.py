"""What can go wrong with a checkpoint."""

import os
import re

from jaxdist.core.errors import JaxdistError


class CheckpointError(JaxdistError):
    """A checkpoint could not be written or read; the text says which, where and why."""

    exit_code = 1


class MismatchError(CheckpointError):
    """A sound checkpoint does not fit the state that is asked for: it belongs to another experiment."""


class InUseError(CheckpointError):
    """Another process uses the folder."""


class DamageError(CheckpointError):
    """One checkpoint is unreadable or altered; the text is the reason."""


def why(error: Exception) -> str:
    """Returns what the system says of `error`, or else its kind and the first line of its text, cut to size.

    >>> why(ValueError("RESOURCE_EXHAUSTED: Failed to write ... [os_error_code='28']"))
    'No space left on device'
    >>> why(ValueError('bad header\\nlong trace'))
    'ValueError: bad header'
    """
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    line = (str(error).splitlines() or [''])[0]
    return f'{type(error).__name__}: {line[:300]}'
