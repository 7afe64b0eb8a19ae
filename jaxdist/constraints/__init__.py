"""Constrained optimisation: constraints, multipliers by distributed dual ascent, and splitting methods.

The sign conventions are stated in `lagrangian.py`.
"""

from typing import Any

from jaxdist.constraints.constraint import Constraint, equality, inequality
from jaxdist.constraints.diagnostics import KKT, Best, better, duality_gap, first_best, kkt
from jaxdist.constraints.dual_ascent import Duals
from jaxdist.constraints.dual_transformations import nupi, restart, scale_by_penalty, within
from jaxdist.constraints.feature_multipliers import linear
from jaxdist.constraints.lagrangian import (
    Term,
    augmented_lagrangian,
    effective_multiplier,
    lagrangian,
    quadratic_penalty,
    violation,
)
from jaxdist.constraints.library import demographic_parity, density, equal_opportunity, squared_norm
from jaxdist.constraints.objective import LagrangianObjective
from jaxdist.constraints.penalties import growing
from jaxdist.constraints.solvers.consensus_admm import Balance, by_steps, consensus_admm, least_squares
from jaxdist.constraints.solvers.dual_decomposition import dual_decomposition
from jaxdist.constraints.solvers.linearized_admm import linearized_admm
from jaxdist.constraints.solvers.primal_dual import primal_dual
from jaxdist.core.deprecation import former_name

__all__ = [
    'KKT',
    'Balance',
    'Best',
    'Constraint',
    'Duals',
    'LagrangianObjective',
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


def __getattr__(name: str) -> Any:
    return former_name(__name__, name, {'DualAscent': LagrangianObjective})
