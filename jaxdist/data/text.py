"""Text as bytes: the sources of the Python standard library, which every machine has, or any local file."""

import math
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdist.core.errors import DatasetError, InputError
from jaxdist.core.types import Batch, Task
from jaxdist.data.dataset import Data, batches, constant_loss, digest, held_out_count, in_order
from jaxdist.data.division import Division, Even
from jaxdist.data.sampling import Parts, at_random, sampler

BYTES = 256
LIMIT = 8_000_000
"""Bytes of the standard library that are read."""
EXCLUDED = re.compile(
    r'site-packages|dist-packages|tests?|idle_test|__pycache__|config-.*|'  # packages, tests, build files
    r'idlelib|tkinter|turtledemo|lib2to3|distutils|ensurepip|'  # in separate packages on some systems
    r'encodings|pydoc_data'  # tables and generated text
)
"""Folders of the standard library that are not read."""


class Source(NamedTuple):
    """A text.

    Attributes:
        text: its bytes [N].
        ends: the end of each file in it, [files].
        name: the name of its source.
    """

    text: np.ndarray
    ends: np.ndarray
    name: str


@dataclass(frozen=True)
class Text:
    """Text as bytes, for next-byte prediction."""

    path: str | None = None
    """A local file; None for the sources of the Python standard library."""
    context: int = 128
    """Bytes in one example."""
    held_out: float = 0.05
    """Fraction of the text, at its end, that is held out from training."""
    division: Any = field(default_factory=Even)
    """How the text is divided among workers, in blocks of `context` bytes; labels are its files."""

    def load(self) -> Data:
        """Loads the text: training examples are random windows of it; held-out ones are consecutive windows of its end.

        Every held-out byte is predicted once, save the first and those that do not fill a last window. Of a single file
        `ByLabel` assigns separate blocks to each worker.

        Raises:
            DatasetError: there is no such file.
            InputError: the text is empty, or too short for the context.

        >>> data = Text(context=32).load()
        >>> data.batch(seed=0, step=0, size=4, workers=2)['tokens'].shape
        (4, 33)
        """
        source = _standard_library() if self.path is None else _file(Path(self.path))
        return from_source(source, self.context, self.held_out, self.division)


def from_source(source: Source, context: int, held_out: float, division: Division) -> Data:
    """The data set of a text, as in `Text`.

    Args:
        source: the text.
        context: bytes in one example.
        held_out: fraction of the text, at its end, that is held out from training.
        division: how the text is divided among workers, in blocks of `context` bytes; labels are its files.

    Raises:
        InputError: the text is too short for the context.

    >>> source = Source(np.frombuffer(b'the end ' * 20, np.uint8), np.array([160]), 'twenty ends')
    >>> from_source(source, context=8, held_out=0.1, division=Even()).facts['held_out']
    16
    """
    train, held = _parts(source, context, held_out)
    windows = (len(held) - 1) // context
    task = Task('tokens', (context,), BYTES)
    draw = sampler(_blocks(len(train), source.ends, context, division), at_random, places=context)
    return Data(
        task,
        batches(draw, _fetch(train, context, stride=1)),
        in_order(windows, _fetch(held, context, stride=context)),
        _facts(source, len(train), len(held)),
        constant_loss(task, train, held[1 : windows * context + 1]),
        'byte histogram',
    )


def _parts(source: Source, context: int, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """The training and the held-out bytes."""
    if context < 1:
        raise InputError(f'context={context} must be 1 byte or more')
    size = len(source.text)
    held = held_out_count(size, held_out, f'bytes ({source.name})')
    if size - held < 2 * context or held <= context:
        need = max(2 * context / (1 - held_out), (context + 1) / held_out)
        raise InputError(
            f'the text ({source.name}) has {size} bytes, too few for context={context} with held_out={held_out}: it '
            f'needs about {math.ceil(need)}, or a shorter context'
        )
    return source.text[: size - held], source.text[size - held :]


def _blocks(size: int, ends: np.ndarray, context: int, division: Division) -> Callable[[int], Parts]:
    """`workers -> parts`: the blocks of the training text in which each worker's examples start."""
    blocks = size // context - 1  # examples that start in the last of these end in the block after it
    files = np.searchsorted(ends, np.arange(blocks) * context, side='right')
    return lambda workers: division.parts(blocks, files, workers)


def _fetch(text: np.ndarray, context: int, stride: int) -> Callable[[np.ndarray], Batch]:
    """The function from indices of windows, which start every `stride` bytes, to `tokens` [B, context + 1]."""
    offsets = np.arange(context + 1)
    return lambda rows: {'tokens': text[rows[:, None] * stride + offsets].astype(np.int32)}


def _facts(source: Source, train: int, held: int) -> dict[str, str | int | float]:
    return {
        'name': source.name,
        'files': len(source.ends),
        'bytes': train + held,
        'held_out': held,
        'split': 'the end is held out',
        'sha256': digest(source.text),
    }


def _file(path: Path) -> Source:
    """The bytes of one file."""
    if path.is_dir():
        raise InputError(f'{str(path)!r} is a folder; path must be one text file')
    if not path.is_file():
        raise DatasetError(f'there is no text file {str(path)!r}')
    text = np.fromfile(path, np.uint8)
    if not len(text):
        raise InputError(f'the text file {str(path)!r} is empty')
    return Source(text, np.array([len(text)]), path.name)


def _standard_library() -> Source:
    """The first `LIMIT` bytes of the standard library's sources, in the order of their paths."""
    root = Path(sysconfig.get_path('stdlib'))
    pieces: list[bytes] = []
    size = 0
    for path in sorted(_sources(root), key=lambda path: path.relative_to(root).as_posix()):
        pieces.append(path.read_bytes()[: LIMIT - size])
        size += len(pieces[-1])
        if size == LIMIT:
            break
    if not size:
        raise DatasetError(
            f'this Python has no sources of its standard library in {str(root)!r}: give a path to a text'
        )
    ends = np.cumsum([len(piece) for piece in pieces])
    name = f'standard library of Python {platform.python_version()}'
    return Source(np.frombuffer(b''.join(pieces), np.uint8), ends, name)


def _sources(root: Path) -> Iterator[Path]:
    """The Python files below a folder that are the same on every machine with this Python version."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not EXCLUDED.fullmatch(name)]
        yield from (Path(folder, n) for n in names if n.endswith('.py') and not n.startswith('_sysconfigdata'))
