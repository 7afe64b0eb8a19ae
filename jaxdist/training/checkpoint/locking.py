"""A lock on a folder, for one process at a time."""

import fcntl
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxdist.training.checkpoint.errors import CheckpointError, InUseError, reason

JOBS = ('SLURM_JOB_ID', 'JOB_NAME', 'PBS_JOBID', 'LSB_JOBID')
"""Variables in which launchers give the name of the job."""
FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def lock(folder: Path, token: str = '') -> Iterator[None]:
    """Locks `folder`, created if missing, until the block ends or the process does, killed or not.

    The file `lock` has the process, its machine and its job, of which a process id alone says nothing elsewhere. In a
    run of several processes only process 0 locks.

    Args:
        folder: the folder.
        token: text that is written too, by which other processes see that they share the folder.

    Raises:
        InUseError: another process has locked it; the message names it.
        CheckpointError: the folder cannot be written, or its `lock` is no regular file.

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
        _refuse_others(path)
        file = os.fdopen(os.open(path, FLAGS, 0o666), 'a+')
    except OSError as error:
        raise CheckpointError(f'cannot write in the folder {folder}: {reason(error)}') from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.readline().strip() or 'process (unknown)'
            raise InUseError(f'{folder} is in use by {who}') from None
        file.truncate(0)
        file.write(f'{_owner()}\n{token}\n')
        file.flush()
        if token:
            os.fsync(file.fileno())  # for those that read it over a network
        yield


def read_lock(folder: Path) -> str:
    """The text of a folder's lock; empty if it cannot be read.

    >>> read_lock(Path('nowhere'))
    ''
    """
    try:
        return (Path(folder) / 'lock').read_text()
    except OSError:
        return ''


def _owner() -> str:
    job = next((f', job {os.environ[name]}' for name in JOBS if name in os.environ), '')
    return f'process {os.getpid()} on {platform.node()}{job}'


def _refuse_others(path: Path) -> None:
    """Raises CheckpointError for a link, FIFO or folder: the file is truncated, and the folder may be a stranger's."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        kind = 'a symbolic link' if path.is_symlink() else 'no regular file'
        raise CheckpointError(f'{path} is {kind}, and a run must write in it: remove it')
