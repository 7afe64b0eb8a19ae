"""Small data sets that are part of scikit-learn: nothing is downloaded."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from jaxdist.core.errors import MissingExtraError
from jaxdist.data.dataset import Data, Facts
from jaxdist.data.division import Even
from jaxdist.data.examples import HELD_OUT, divided, grouped, split, standardiser


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, 1797 images of 8 x 8 (UCI optical recognition of handwritten digits)."""

    held_out: float = HELD_OUT
    """Fraction of the images that is held out from training."""
    division: Any = field(default_factory=Even)
    """How the images are divided among workers."""

    def load(self) -> Data:
        """Loads images [8, 8, 1], standardised over all training pixels, with ten labels.

        Raises:
            ImportError: scikit-learn is missing.

        >>> Digits().load().task
        Task(kind='classes', shape=(8, 8, 1), classes=10)
        """
        raw = _sklearn().load_digits()
        train, held = split(raw.images[..., None], raw.target, self.held_out)
        facts = _facts('digits', self.held_out)
        scale = standardiser(train.x)
        return divided(train, held, kind='classes', classes=10, scale=scale, division=self.division, facts=facts)


@dataclass(frozen=True)
class Table:
    """A small table: three for classification, one (diabetes) for regression."""

    name: Literal['breast_cancer', 'wine', 'iris', 'diabetes'] = 'breast_cancer'
    """The table's name in scikit-learn."""
    held_out: float = HELD_OUT
    """Fraction of the rows that is held out from training."""
    division: Any = field(default_factory=Even)
    """How the rows are divided among workers."""
    group: str = ''
    """Feature that assigns examples to group 0 or 1, for fairness, such as 'sex' of diabetes. Group 1 is above the
    midpoint of the feature's two values, or if it has more than two, above the median."""

    def load(self) -> Data:
        """Loads rows [features]; each feature, and the target of a regression, is standardised over the training rows.

        With a `group`, batches have `group` [B], 1 where the feature is above a threshold and else 0: the midpoint of
        its smallest and largest value for a feature of exactly two values, else its median, both over the training
        rows. The feature stays among the inputs.

        Raises:
            ImportError: scikit-learn is missing.
            InputError: the table has no such feature for `group`, or one of the two groups is empty.

        >>> Table(name='iris').load().task
        Task(kind='classes', shape=(4,), classes=3)
        >>> Table(name='diabetes', group='sex').load().batch(seed=0, step=0, size=4, workers=1)['group']
        array([0, 1, 0, 0], dtype=int32)
        """
        raw = getattr(_sklearn(), f'load_{self.name}')()
        train, held, groups = grouped(*split(raw.data, raw.target, self.held_out), self.group, list(raw.feature_names))
        facts = _facts(self.name, self.held_out) | groups
        if self.name == 'diabetes':
            facts |= {'target_mean': float(train.y.mean()), 'target_deviation': float(train.y.std())}
            scale_y = standardiser(train.y)
            train, held = (part._replace(y=scale_y(part.y)) for part in (train, held))
        scale = standardiser(train.x, dims=(0,))
        kind: Literal['classes', 'values'] = 'values' if self.name == 'diabetes' else 'classes'
        classes = 1 if kind == 'values' else int(raw.target.max()) + 1
        return divided(train, held, kind=kind, classes=classes, scale=scale, division=self.division, facts=facts)


def _sklearn() -> ModuleType:
    """The module of scikit-learn's data sets."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError(
            "this data set is part of scikit-learn, which is not installed: pip install 'jaxdist[data]'"
        ) from error
    return datasets


def _facts(name: str, fraction: float) -> Facts:
    return {
        'name': name,
        'source': f'scikit-learn, load_{name}',
        'split': f'{fraction:g} held out, in a fixed order',
    }
