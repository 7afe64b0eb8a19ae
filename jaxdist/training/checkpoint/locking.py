"""A lock on a folder, for one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxdist.training.checkpoint.errors import CheckpointError, InUseError, reason


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks `folder`, created if missing, until the block ends or the process does, killed or not.

    In a run of several processes only process 0 locks.

    Raises:
        InUseError: another process has locked it; the message has its process id.
        CheckpointError: the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock(Path(folder)):
    ...     try:
    ...         with lock(Path(folder)):
    ...             pass
    ...     except InUseError as error:
    ...         print(f'process {os.getpid()}' in str(error))
    True
    """
    path = Path(folder) / 'lock'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a+')
    except OSError as error:
        raise CheckpointError(f'cannot write in the folder {folder}: {reason(error)}') from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InUseError(f'{folder} is in use by process {file.read() or "(unknown)"}') from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
