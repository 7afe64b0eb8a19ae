"""The names of `import jaxdist`: those that every user needs, and all registered algorithms and codecs."""

from importlib import metadata
from typing import Any

from jaxdist import algorithms as algorithms
from jaxdist import codecs as codecs
from jaxdist import constraints as constraints
from jaxdist import laws as laws
from jaxdist.core import registry
from jaxdist.core.collectives import pvary as pvary
from jaxdist.core.errors import InputError as InputError
from jaxdist.core.errors import JaxdistError as JaxdistError
from jaxdist.core.program import distribute as distribute
from jaxdist.core.registry import algorithm as algorithm
from jaxdist.core.registry import codec as codec
from jaxdist.core.types import Variables as Variables
from jaxdist.core.workers import on_mesh as on_mesh
from jaxdist.core.workers import simulated as simulated
from jaxdist.ledger import cost as cost
from jaxdist.line import build as build
from jaxdist.training.experiment import Experiment as Experiment
from jaxdist.training.metrics import means as means
from jaxdist.training.same_under import same_under as same_under
from jaxdist.training.step import make_step as make_step

__version__ = metadata.version('jaxdist')

_registered: dict[str, Any] = {
    name: entry.make for name, entry in {**registry.algorithms(), **registry.codecs()}.items()
}
globals().update(_registered)

__all__ = [
    'Experiment',
    'InputError',
    'JaxdistError',
    'Variables',
    '__version__',
    'algorithm',
    'build',
    'codec',
    'cost',
    'distribute',
    'make_step',
    'means',
    'on_mesh',
    'pvary',
    'same_under',
    'simulated',
    *sorted(_registered),
]
