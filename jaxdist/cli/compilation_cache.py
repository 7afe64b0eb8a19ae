"""JAX's persistent compilation cache: programs that one run compiled are loaded by the next.

JAX writes entries in place, and neither replaces nor removes one. So a killed process or a full disk can leave a part
of an entry, which JAX recognises, but reports in each later run. Therefore new entries are verified once, before the
next run, and are read-only from then on.
"""

import contextlib
import hashlib
import importlib
import os
import platform
import sys
import tempfile
import time
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

DAYS = 30
"""Entries that were not used for so many days are removed."""


def keep_programs(choice: str = '', *, several: bool = False) -> str:
    """Has JAX keep compiled programs in a folder; returns a line for the user, or '' where there is nothing to say.

    It may follow a computation, and must follow `options.start`. If the folder cannot be written, the line says so and
    nothing changes.

    Args:
        choice: a folder, `none` for no cache, or '' for the default. The default is what JAX's own settings say, such
            as JAX_COMPILATION_CACHE_DIR in the environment; without them a folder in the user's cache, and in several
            processes none, since a folder that they do not share would let some compile while others do not.
        several: whether it is for several processes though this one is alone.

    >>> keep_programs('/dev/null/programs')
    'compiled programs are not kept in /dev/null/programs: Not a directory'
    """
    if choice.lower() == 'none':
        _set(jax_enable_compilation_cache=False)
        return ''
    settings: Any = jax.config  # types lack its attributes
    configured = settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache
    if not choice and (configured or several or jax.process_count() > 1):
        return ''
    try:
        base = Path(choice).expanduser().absolute() if choice else default_folder()
    except RuntimeError as error:  # the user has no home folder
        return f'compiled programs are not kept: {error}'
    folder = base / f'jax-{jax.__version__}-{compression().__name__}-{processor()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'x')
    except OSError as error:
        return f'compiled programs are not kept in {base}: {error.strerror or error}'
    _set(
        jax_enable_compilation_cache=True,
        jax_compilation_cache_dir=str(folder),
        jax_persistent_cache_min_compile_time_secs=0.0,  # a run has many small programs
        jax_persistent_cache_enable_xla_caches='none',  # their path would be part of each key
    )
    return f'compiled programs are kept in {short(folder)}'


def _set(**settings: bool | float | str) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # else JAX keeps to what it read when it first compiled


def default_folder() -> Path:
    """The folder for all versions and processors, in the user's cache folder.

    Raises:
        RuntimeError: the user has no home folder.

    >>> default_folder().name
    'compiled'
    """
    cache = Path('~/Library/Caches' if sys.platform == 'darwin' else '~/.cache')
    return Path(os.environ.get('XDG_CACHE_HOME') or cache.expanduser()) / 'jaxdist' / 'compiled'


def processor() -> str:
    """A digest of this machine's kind of processor.

    JAX's keys lack it, and machines that share a home folder may differ: a program for CPU may have instructions that
    another processor lacks.

    >>> len(processor())
    12
    """
    cpu = Path('/proc/cpuinfo')
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(('flags', 'Features'))), lines[0])
    return hashlib.sha256(f'{platform.machine()} {features}'.encode()).hexdigest()[:12]


def short(folder: Path) -> str:
    """The folder, with `~` for the user's home.

    >>> short(Path('~/.cache').expanduser()), short(Path('/data'))
    ('~/.cache', '/data')
    """
    home = os.path.expanduser('~')
    return f'~{str(folder).removeprefix(home)}' if folder.is_relative_to(home) else str(folder)


def tidy(folder: Path) -> None:
    """Removes new entries that are incomplete, and entries that were not used for `DAYS`.

    >>> tidy(Path('nowhere'))
    """
    for entry in folder.glob('*-cache'):
        with contextlib.suppress(OSError):  # another process may have removed it just now, or another user owns it
            status = entry.stat()
            if max(status.st_atime, status.st_mtime) < time.time() - DAYS * 86400:
                entry.unlink()
            elif status.st_mode & 0o200:
                if is_complete(entry.read_bytes()):
                    entry.chmod(0o444)
                else:
                    entry.unlink()


def is_complete(entry: bytes) -> bool:
    """Whether an entry can be decompressed, which detects a missing end.

    >>> whole = compression().compress(b'program')
    >>> is_complete(whole), is_complete(whole[:-1]), is_complete(b'')
    (True, False, False)
    """
    try:
        compression().decompress(entry)
    except Exception:  # each library has its own error
        return False
    return True


def compression() -> ModuleType:
    """The module with which JAX compresses entries, and can read no others: Zstandard where it is installed.

    >>> compression().__name__ in ('compression.zstd', 'zstandard', 'zlib')
    True
    """
    for name in ('compression.zstd', 'zstandard'):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return zlib
