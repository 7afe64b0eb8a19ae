"""Files of a folder that may be a stranger's: none is written through a symbolic link, which could lead anywhere."""

import os
import stat
from pathlib import Path

from jaxdist.core.errors import FileError


def refuse_link(path: Path, below: Path | None = None) -> None:
    """Refuses a path that is there and is neither a regular file nor a folder, such as a symbolic link or a FIFO.

    Args:
        path: the file or folder; it need not be there.
        below: a folder above it: the folders between them may be no links either.

    Raises:
        FileError: there is another thing; the message names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, 'loss.png').symlink_to('elsewhere')
    ...     try:
    ...         refuse_link(Path(folder, 'loss.png'))
    ...     except FileError as error:
    ...         print(str(error).removeprefix(folder))
    /loss.png is a symbolic link, and a file is written there, not in its target: remove it
    """
    for each in [path] if below is None else [*_between(path, below), path]:
        try:
            mode = each.lstat().st_mode
        except OSError:  # it is not there; what else is wrong shows when it is written
            continue
        if stat.S_ISLNK(mode):
            raise FileError(f'{each} is a symbolic link, and a file is written there, not in its target: remove it')
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise FileError(f'{each} is no regular file: remove it')


def write(path: Path, text: str, encoding: str | None = None, *, append: bool = False) -> None:
    """Writes a text into a file, which is no symbolic link.

    Args:
        path: the file; its folder must be there.
        text: the text.
        encoding: as of `open`.
        append: writes it behind what is there, and not in its place.

    Raises:
        FileError: the file cannot be written, or is no regular file; the message names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, 'a'), 'one ')
    ...     write(Path(folder, 'a'), 'two', append=True)
    ...     Path(folder, 'a').read_text()
    'one two'
    """
    refuse_link(path)
    how = os.O_APPEND if append else os.O_TRUNC
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | how, 0o666)
        with os.fdopen(descriptor, 'a' if append else 'w', encoding=encoding) as file:
            file.write(text)
    except OSError as error:  # the error of a full disk does not name the file
        raise FileError(error.errno, error.strerror, str(path)) from error


def replace(path: Path, text: str) -> None:
    """Replaces a file atomically: a concurrent reader, or one after a crash, gets the old text or the new one.

    Raises:
        FileError: as `write`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace(Path(folder, 'a'), 'one')
    ...     Path(folder, 'a').read_text()
    'one'
    """
    new = path.with_name(f'{path.name}.new')
    new.unlink(missing_ok=True)
    write(new, text)
    os.replace(new, path)


def _between(path: Path, below: Path) -> list[Path]:
    """The folders above a path and below another folder, the outermost first."""
    return [each for each in reversed(path.parents) if below in each.parents]
