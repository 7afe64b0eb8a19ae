"""Text as bytes: the sources of the Python standard library, which every machine has, or any local file."""

import math
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
    division: Division = field(default_factory=Even)
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
        train, held = self._split(source)
        windows = (len(held) - 1) // self.context
        task = Task('tokens', (self.context,), BYTES)
        draw = sampler(self._blocks(len(train), source.ends), at_random, places=self.context)
        return Data(
            task,
            batches(draw, _fetch(train, self.context, stride=1)),
            in_order(windows, _fetch(held, self.context, stride=self.context)),
            _facts(source, len(train), len(held)),
            constant_loss(task, train, held[1 : windows * self.context + 1]),
            'byte histogram',
        )

    def _split(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """The training and the held-out bytes."""
        if self.context < 1:
            raise InputError(f'context={self.context} must be 1 byte or more')
        size = len(source.text)
        held = held_out_count(size, self.held_out, f'bytes ({source.name})')
        if size - held < 2 * self.context or held <= self.context:
            need = max(2 * self.context / (1 - self.held_out), (self.context + 1) / self.held_out)
            raise InputError(
                f'the text ({source.name}) has {size} bytes, too few for context={self.context} with '
                f'held_out={self.held_out}: it needs about {math.ceil(need)}, or a shorter context'
            )
        return source.text[: size - held], source.text[size - held :]

    def _blocks(self, size: int, ends: np.ndarray) -> Callable[[int], Parts]:
        """`workers -> parts`: the blocks of the training text in which each worker's examples start."""
        blocks = size // self.context - 1  # examples that start in the last of these end in the block after it
        starts = np.arange(blocks) * self.context
        files = np.searchsorted(ends, starts, side='right')
        return lambda workers: self.division.parts(blocks, files, workers)


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
