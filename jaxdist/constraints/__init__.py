"""Constraints, held by multipliers that all workers agree on. The signs are stated in `lagrangian.py`."""

from jaxdist.constraints.constraint import Constraint, equality, inequality
from jaxdist.constraints.dual_ascent import DualAscent, Duals
from jaxdist.constraints.lagrangian import (
    Term,
    augmented_lagrangian,
    effective_multiplier,
    lagrangian,
    quadratic_penalty,
    violation,
)
from jaxdist.constraints.nupi import nupi
from jaxdist.constraints.penalties import growing
from jaxdist.constraints.placement import linear
from jaxdist.constraints.restart import restart
from jaxdist.constraints.scale_by_penalty import scale_by_penalty
from jaxdist.constraints.within import within

__all__ = [
    'Constraint',
    'DualAscent',
    'Duals',
    'Term',
    'augmented_lagrangian',
    'effective_multiplier',
    'equality',
    'growing',
    'inequality',
    'lagrangian',
    'linear',
    'nupi',
    'quadratic_penalty',
    'restart',
    'scale_by_penalty',
    'violation',
    'within',
]
