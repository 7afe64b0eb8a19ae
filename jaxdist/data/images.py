"""Fashion-MNIST from its idx files (Xiao et al. 2017, arXiv 1708.07747); MNIST's files have the same format."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxdist.core.errors import DatasetError, InputError
from jaxdist.data.dataset import Data
from jaxdist.data.division import Even
from jaxdist.data.examples import Examples, divided, standardiser

DEBIAN = Path('/usr/share/datasets/fashion-mnist')
CLASSES = 10
UNSIGNED_BYTES = 0x08


@dataclass(frozen=True)
class FashionMNIST:
    """Images of clothes, 28 x 28 grey, ten labels: 60000 for training, 10000 held out."""

    path: str | None = None
    """Folder of the four idx files, compressed (.gz) or not; None for that of Debian's dataset-fashion-mnist."""
    division: Any = field(default_factory=Even)
    """How the images are divided among workers."""

    def load(self) -> Data:
        """Loads images [H, W, 1], standardised over all training pixels, with ten labels.

        Raises:
            DatasetError: a file is missing.
            InputError: a file is damaged, or is not one of images or labels.

        >>> FashionMNIST(path='nowhere').load()
        Traceback (most recent call last):
        jaxdist.DatasetError: no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in 'nowhere'; ...
        """
        folder = Path(self.path) if self.path is not None else DEBIAN
        train, held = (_examples(folder, part) for part in ('train', 't10k'))
        if train.x.shape[1:] != held.x.shape[1:]:
            raise InputError(f'{folder}: training images are {train.x.shape[1:]}, held-out ones {held.x.shape[1:]}')
        scale = standardiser(train.x)
        facts: dict[str, str | int | float] = {
            'name': 'Fashion-MNIST',
            'source': str(folder),
            'split': 'train and t10k',
        }
        return divided(train, held, kind='classes', classes=CLASSES, scale=scale, division=self.division, facts=facts)


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an idx file, compressed with gzip if its name ends in .gz.

    The format is that of http://yann.lecun.com/exdb/mnist: two zero bytes, the type, the number of dims, each dim as a
    big-endian 32-bit number, then the values.

    Raises:
        InputError: the file is not an idx file of unsigned bytes, is damaged, or has another length than its header
            gives.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, 'labels')
    ...     size = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    ...     read_idx(path)
    array([7, 9], dtype=uint8)
    """
    raw = _unpacked(path)
    if len(raw) < 4 or raw[:3] != bytes([0, 0, UNSIGNED_BYTES]):
        raise InputError(f'{path} is not an idx file of unsigned bytes: it begins with {raw[:4].hex()!r}, not 000008')
    dims, header = raw[3], 4 + 4 * raw[3]
    shape = struct.unpack(f'>{dims}I', raw[4:header]) if len(raw) >= header else (0,)
    if len(raw) != header + math.prod(shape):
        expected = header + math.prod(shape)
        raise InputError(f'{path} has {len(raw)} bytes, and its header gives {expected}: it is truncated or damaged')
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _unpacked(path: Path) -> bytes:
    if path.suffix != '.gz':
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f'{path} cannot be unpacked, it is truncated or damaged: {error}') from error


def _examples(folder: Path, part: str) -> Examples:
    """The images [N, H, W, 1] and labels [N] of `train` or `t10k`, as bytes."""
    images = read_idx(_find(folder, f'{part}-images-idx3-ubyte'))
    labels = read_idx(_find(folder, f'{part}-labels-idx1-ubyte'))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise InputError(f'{folder}: {part} has images {images.shape} and labels {labels.shape}, not [N, H, W] and [N]')
    if labels.max() >= CLASSES:
        raise InputError(f'{folder}: {part} has the label {labels.max()}, and labels must be below {CLASSES}')
    return Examples(images[..., None], labels)


def _find(folder: Path, name: str) -> Path:
    """The path of a file, compressed or not."""
    for path in (folder / name, folder / f'{name}.gz'):
        if path.is_file():
            return path
    raise DatasetError(
        f'no {name} or {name}.gz in {str(folder)!r}; install the data (on Debian and Ubuntu: apt install '
        'dataset-fashion-mnist), or set path to a folder with the four idx files of '
        'https://github.com/zalandoresearch/fashion-mnist'
    )
