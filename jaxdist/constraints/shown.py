"""What a step shows of a constraint, in a few numbers."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint, Sums
from jaxdist.constraints.lagrangian import Term, violation


def shown(constraint: Constraint, multipliers: Any, sums: Sums, judged: Sums) -> dict[str, jax.Array]:
    """Scalars: `value` (of the true measure; NaN where no example tells it), its `violation`, and its `multiplier`.

    Where a constraint has several values, the one is shown that is violated most, or nearest to it; and of several
    multipliers the largest in size, which need not be that one's: of a gap bounded from both sides, the value changes
    sides from batch to batch. If it has a true measure, the value of its proxy is there too, as `proxy`. A function of
    features has no multiplier to show.

    >>> from jaxdist.constraints.constraint import inequality
    >>> two = inequality('two', lambda params: params)
    >>> at = (jnp.array([-1.0, 2.0]),)
    >>> {name: float(x) for name, x in shown(two, jnp.array([0.0, 0.5]), at, at).items()}
    {'value': 2.0, 'violation': 2.0, 'multiplier': 0.5}
    """
    value = jnp.where(constraint.known(judged), constraint.value(judged), jnp.nan).reshape(-1)
    far = value if constraint.kind == 'inequality' else jnp.abs(value)
    at = jnp.argmax(jnp.where(jnp.isnan(far), -jnp.inf, far))
    found = {'value': value[at], 'violation': violation(Term(constraint.kind, value[at], 0.0))}
    if constraint.multiplier is None:
        each = multipliers.reshape(-1)
        found['multiplier'] = each[jnp.argmax(jnp.abs(each))]
    if constraint.true is not None:
        found['proxy'] = constraint.value(sums).reshape(-1)[at]
    return found
