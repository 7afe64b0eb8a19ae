"""Data sets, and how their examples are divided among workers."""

from jaxdist.data.arrays import from_arrays
from jaxdist.data.census import Census
from jaxdist.data.dataset import Data, Draw
from jaxdist.data.division import ByLabel, Dirichlet, Division, Even, Sizes
from jaxdist.data.huggingface import HuggingFace, HuggingFaceText
from jaxdist.data.images import FashionMNIST
from jaxdist.data.streams import from_iterator
from jaxdist.data.tables import Digits, Table
from jaxdist.data.text import Text

Dataset = Text | Digits | Table | FashionMNIST | Census | HuggingFace | HuggingFaceText
"""The settings of a data set; `.load()` reads it."""

__all__ = [
    'ByLabel',
    'Census',
    'Data',
    'Dataset',
    'Digits',
    'Dirichlet',
    'Division',
    'Draw',
    'Even',
    'FashionMNIST',
    'HuggingFace',
    'HuggingFaceText',
    'Sizes',
    'Table',
    'Text',
    'from_arrays',
    'from_iterator',
]
