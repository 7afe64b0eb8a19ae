"""Constraints, held by multipliers that all workers agree on. The signs are stated in `lagrangian.py`."""

from jaxdist.constraints.solvers.consensus_admm import Balance, by_steps, consensus_admm, least_squares
from jaxdist.constraints.constraint import Constraint, equality, inequality
from jaxdist.constraints.library import density
from jaxdist.constraints.diagnostics import KKT, Best, better, duality_gap, first_best, kkt
from jaxdist.constraints.dual_ascent import DualAscent, Duals
from jaxdist.constraints.solvers.dual_decomposition import dual_decomposition
from jaxdist.constraints.library import demographic_parity, equal_opportunity
from jaxdist.constraints.lagrangian import (
    Term,
    augmented_lagrangian,
    effective_multiplier,
    lagrangian,
    quadratic_penalty,
    violation,
)
from jaxdist.constraints.solvers.linearized_admm import linearized_admm
from jaxdist.constraints.dual_transformations import nupi
from jaxdist.constraints.feature_multipliers import linear
from jaxdist.constraints.penalties import growing
from jaxdist.constraints.solvers.primal_dual import primal_dual
from jaxdist.constraints.dual_transformations import restart
from jaxdist.constraints.dual_transformations import scale_by_penalty
from jaxdist.constraints.library import squared_norm
from jaxdist.constraints.dual_transformations import within

__all__ = [
    'KKT',
    'Balance',
    'Best',
    'Constraint',
    'DualAscent',
    'Duals',
    'Term',
    'augmented_lagrangian',
    'better',
    'by_steps',
    'consensus_admm',
    'demographic_parity',
    'density',
    'dual_decomposition',
    'duality_gap',
    'effective_multiplier',
    'equal_opportunity',
    'equality',
    'first_best',
    'growing',
    'inequality',
    'kkt',
    'lagrangian',
    'least_squares',
    'linear',
    'linearized_admm',
    'nupi',
    'primal_dual',
    'quadratic_penalty',
    'restart',
    'scale_by_penalty',
    'squared_norm',
    'violation',
    'within',
]
