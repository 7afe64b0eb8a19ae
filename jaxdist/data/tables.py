"""Small real data sets that come with scikit-learn: nothing to download."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

import numpy as np

from jaxdist.data.dataset import Data, held_out_count
from jaxdist.data.division import Division, Even
from jaxdist.data.examples import Examples, divided, standardiser
from jaxdist.data.sampling import permutation

HELD_OUT = 0.2
SPLIT_SEED = 0
"""The split into training and held-out rows is the same for every run."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, 1797 images of 8 x 8 (UCI optical recognition of handwritten digits)."""

    held_out: float = HELD_OUT
    """Fraction of the images that is kept from training."""
    division: Division = field(default_factory=Even)
    """How the images are divided among workers."""

    def load(self) -> Data:
        """Images [8, 8, 1], of mean 0 and deviation 1 over all training pixels, and ten labels.

        Raises:
            ImportError: scikit-learn is missing.

        >>> Digits().load().task
        Task(kind='classes', shape=(8, 8, 1), classes=10)
        """
        raw = _sklearn().load_digits()
        train, held = _split(raw.images[..., None], raw.target, self.held_out)
        facts = _facts('digits', self.held_out)
        scale = standardiser(train.x)
        return divided(train, held, kind='classes', classes=10, scale=scale, division=self.division, facts=facts)


@dataclass(frozen=True)
class Table:
    """A small table: three to tell classes apart, one (diabetes) with a real number to predict."""

    name: Literal['breast_cancer', 'wine', 'iris', 'diabetes'] = 'breast_cancer'
    """Which one, by its name in scikit-learn."""
    held_out: float = HELD_OUT
    """Fraction of the rows that is kept from training."""
    division: Division = field(default_factory=Even)
    """How the rows are divided among workers."""

    def load(self) -> Data:
        """Rows [features], each feature (and a real number to predict) of mean 0 and deviation 1 over the
        training rows.

        Raises:
            ImportError: scikit-learn is missing.

        >>> Table(name='iris').load().task
        Task(kind='classes', shape=(4,), classes=3)
        """
        raw = getattr(_sklearn(), f'load_{self.name}')()
        train, held = _split(raw.data, raw.target, self.held_out)
        facts = _facts(self.name, self.held_out)
        if self.name == 'diabetes':
            facts |= {'target_mean': float(train.y.mean()), 'target_deviation': float(train.y.std())}
            scale_y = standardiser(train.y)
            train, held = (Examples(part.x, scale_y(part.y)) for part in (train, held))
        scale = standardiser(train.x, dims=(0,))
        kind: Literal['classes', 'values'] = 'values' if self.name == 'diabetes' else 'classes'
        classes = 1 if kind == 'values' else int(raw.target.max()) + 1
        return divided(train, held, kind=kind, classes=classes, scale=scale, division=self.division, facts=facts)


def _sklearn() -> ModuleType:
    """scikit-learn's data sets."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "this data set comes with scikit-learn, which is not installed: pip install 'jaxdist[data]'"
        ) from error
    return datasets


def _split(x: np.ndarray, y: np.ndarray, fraction: float) -> tuple[Examples, Examples]:
    """Training and held-out rows, in one fixed random order."""
    order = permutation(len(y), SPLIT_SEED)
    held = held_out_count(len(y), fraction, 'rows')
    return Examples(x[order[held:]], y[order[held:]]), Examples(x[order[:held]], y[order[:held]])


def _facts(name: str, fraction: float) -> dict[str, str | int | float]:
    return {
        'name': name,
        'source': f'scikit-learn, load_{name}',
        'split': f'{fraction:g} held out, in a fixed order',
    }
