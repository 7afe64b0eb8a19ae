"""Data sets in the format of Hugging Face's library `datasets`, from a local folder; nothing is downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxdist.core.errors import DatasetError, InputError, MissingExtraError
from jaxdist.core.spelling import nearest
from jaxdist.data.arrays import from_arrays
from jaxdist.data.dataset import Data
from jaxdist.data.division import Even
from jaxdist.data.examples import HELD_OUT
from jaxdist.data.text import Source, from_source


@dataclass(frozen=True)
class HuggingFace:
    """Inputs and targets in a folder of Hugging Face's `datasets`."""

    folder: str
    """The folder that `save_to_disk` wrote, or one with Parquet, CSV or JSON files."""
    x: tuple[str, ...] = ('image',)
    """The columns of the inputs: images, lists of numbers or numbers; several are put side by side."""
    y: str = 'label'
    """The column of the targets: labels or real numbers."""
    split: str = 'train'
    """The split of the training examples."""
    held_out_split: str = ''
    """The split that is held out; '' for a fraction of the training split."""
    held_out: float = HELD_OUT
    """Fraction of the training split that is held out, without `held_out_split`."""
    standardise: bool = False
    """Whether inputs are shifted and scaled by the mean and deviation of the training examples."""
    division: Any = field(default_factory=Even)
    """How the training examples are divided among workers."""

    def load(self) -> Data:
        """Loads the columns into memory. Images become [H, W, channels] from 0 to 1, and a column of numbers [1].

        Raises:
            jaxdist.MissingExtraError: `datasets` is not installed.
            jaxdist.DatasetError: there is no such folder.
            InputError: there is no such split or column, or a column is ragged, has missing entries or text.

        >>> HuggingFace('nowhere').load()
        Traceback (most recent call last):
        jaxdist.DatasetError: there is no folder 'nowhere' of a data set: write one with
        datasets.load_dataset(...).save_to_disk('nowhere')
        """
        held_out: float | tuple[Any, Any] = self.held_out
        if self.held_out_split:
            held_out = self._read(self.held_out_split)
        x, y = self._read(self.split)
        return from_arrays(
            x,
            y,
            held_out=held_out,
            standardise=self.standardise,
            division=self.division,
            name=f'{Path(self.folder).name}, {self.split}',
        )

    def _read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = _split(self.folder, split)
        if not self.x:
            raise InputError(f'x must name a column: {self.folder} has {", ".join(rows.column_names)}')
        columns = [_numbers(rows, name, self.folder) for name in self.x]
        columns = [each[:, None] if each.ndim == 1 else each for each in columns]
        if len(columns) > 1:
            columns = [each.reshape(len(each), -1) for each in columns]
        return np.concatenate(columns, axis=1) if len(columns) > 1 else columns[0], _numbers(rows, self.y, self.folder)


@dataclass(frozen=True)
class HuggingFaceText:
    """Text in a folder of Hugging Face's `datasets`, as bytes, for next-byte prediction."""

    folder: str
    """The folder that `save_to_disk` wrote, or one with Parquet, CSV, JSON or text files."""
    column: str = 'text'
    """The column of the text."""
    split: str = 'train'
    """The split."""
    context: int = 128
    """Bytes in one example."""
    held_out: float = 0.05
    """Fraction of the text, at its end, that is held out from training."""
    division: Any = field(default_factory=Even)
    """How the text is divided among workers, in blocks of `context` bytes; labels are the rows."""

    def load(self) -> Data:
        """Loads the rows, each ended by a line feed, as one text; see `jaxdist.data.Text.load`.

        Raises:
            jaxdist.MissingExtraError: `datasets` is not installed.
            jaxdist.DatasetError: there is no such folder.
            InputError: there is no such split or column, or it has no text; or the text is too short.

        >>> HuggingFaceText('nowhere').load()
        Traceback (most recent call last):
        jaxdist.DatasetError: there is no folder 'nowhere' of a data set: write one with
        datasets.load_dataset(...).save_to_disk('nowhere')
        """
        rows = _column(_split(self.folder, self.split), self.column, self.folder)
        wrong = next((entry for entry in rows if not isinstance(entry, str)), None)
        if wrong is not None or not len(rows):
            kind = f'entries such as {wrong!r}' if wrong is not None else 'no rows'
            raise InputError(f'column {self.column!r} of {self.folder} must be text, and has {kind}')
        pieces = [f'{row}\n'.encode() for row in rows]
        ends = np.cumsum([len(piece) for piece in pieces])
        source = Source(np.frombuffer(b''.join(pieces), np.uint8), ends, f'{Path(self.folder).name}, {self.split}')
        return from_source(source, self.context, self.held_out, self.division)


def _split(folder: str, split: str) -> Any:
    """The rows of a split."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "Hugging Face's data sets need the library datasets: pip install 'jaxdist[huggingface]'"
        ) from error
    path = Path(folder)
    if not path.is_dir():
        raise DatasetError(
            f'there is no folder {folder!r} of a data set: write one with '
            f'datasets.load_dataset(...).save_to_disk({folder!r})'
        )
    with _quiet(datasets):
        is_saved = (path / 'dataset_dict.json').exists() or (path / 'state.json').exists()
        try:
            loaded = datasets.load_from_disk(folder) if is_saved else datasets.load_dataset(folder)
        except Exception as error:  # the library raises errors of many kinds for files that it cannot read
            raise InputError(f'{folder} cannot be read as a data set: {error}') from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or split): loaded}
    if split not in loaded:
        raise InputError(f'{folder} has no split {split!r}; it has {", ".join(loaded)}')
    return loaded[split]


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """A context without the library's progress bars."""
    were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


def _column(rows: Any, name: str, folder: str) -> list[Any]:
    if name not in rows.column_names:
        close = nearest(name, rows.column_names)
        hint = f': did you mean {" or ".join(map(repr, close))}?' if close else '.'
        raise InputError(f'{folder} has no column {name!r}{hint} It has {", ".join(rows.column_names)}')
    return list(rows[name])


def _numbers(rows: Any, name: str, folder: str) -> np.ndarray:
    """A column [N, ...] of numbers; images are scaled to 0 to 1."""
    entries = _column(rows, name, folder)
    where = f'column {name!r} of {folder}'
    missing = sum(entry is None for entry in entries)
    if missing:
        raise InputError(f'{where} has {missing} missing entries: remove these rows with `filter`')
    if entries and isinstance(entries[0], str):
        raise InputError(f'{where} is text: make labels of it with `class_encode_column({name!r})`')
    is_image = type(rows.features[name]).__name__ == 'Image'
    arrays = [np.asarray(entry) for entry in entries]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise InputError(f'{where} has entries of {len(shapes)} shapes, such as {shapes[0]} and {shapes[1]}')
    column = np.stack(arrays) if arrays else np.zeros(0)
    if not is_image:
        return column
    return (column if column.ndim == 4 else column[..., None]).astype(np.float32) / 255
