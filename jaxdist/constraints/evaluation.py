"""Constraints evaluated: what a step reports of them, and their true measures over many examples."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.constraints.constraint import Constraint, Sums
from jaxdist.constraints.dual_ascent import DualAscent
from jaxdist.constraints.lagrangian import Term, violation
from jaxdist.core.gradient import cast_params
from jaxdist.core.types import Batch, Loss, Params

Parts = dict[str, Any]
"""What `measuring` gives."""


class Judgement(NamedTuple):
    """Constraints at one set of parameters.

    Attributes:
        loss: the mean loss over the same examples.
        values: by name, where it is violated most; NaN where no example tells it.
        violations: by how much.
        counts: by name, how many values there are.
    """

    loss: float
    values: dict[str, float]
    violations: dict[str, float]
    counts: dict[str, int]

    def holds(self, tolerance: float) -> bool:
        """Whether no violation exceeds the tolerance, and none is unknown."""
        return all(x <= tolerance for x in self.violations.values())


def measuring(
    ascent: DualAscent, loss: Loss, workers: int, compute: jax.typing.DTypeLike | None
) -> Callable[[Params, Batch], Parts]:
    """The function `(params, batch [B, ...]) -> sums` of the loss and, for each worker's part, of the constraints.

    >>> from jaxdist.constraints.constraint import inequality
    >>> large = inequality('large', lambda p, b: b['x'] * p, over='mean', per_worker=True, bound=2.0)
    >>> measure = measuring(DualAscent((large,)), lambda p, b, key: ({'loss': jnp.sum(b['x'])}, 4), 2, None)
    >>> measure(1.0, {'x': jnp.arange(4.0)})['large']
    (Array([1., 5.], dtype=float32), Array([2., 2.], dtype=float32))
    """

    def measure(params: Params, batch: Batch) -> Parts:
        seen = cast_params(params, compute)
        sums, count = loss(seen, batch, jax.random.key(0))
        rows = jax.tree.map(lambda x: x.reshape(workers, x.shape[0] // workers, *x.shape[1:]), batch)

        def each(constraint: Constraint) -> Sums:
            at = params if constraint.over == 'none' else seen
            return jax.vmap(lambda part: constraint.judged(at, part))(rows)

        return {'': (sums['loss'], jnp.asarray(count, float)), **{c.name: each(c) for c in ascent.constraints}}

    return measure


def judge(ascent: DualAscent, parts: Iterable[Parts]) -> Judgement:
    """The judgement from what was measured of some batches.

    Args:
        ascent: the constraints.
        parts: of each batch; at least one.

    >>> from jaxdist.constraints.constraint import inequality
    >>> ascent = DualAscent((inequality('large', lambda p, b: b['x'], over='mean', bound=2.0),))
    >>> judge(ascent, [{'': (1.0, 2.0), 'large': (np.array([1.0, 5.0]), np.array([1.0, 1.0]))}])
    Judgement(loss=0.5, values={'large': 1.0}, violations={'large': 1.0}, counts={'large': 1})
    """
    every = [jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(part)) for part in parts]
    loss, count = (sum(part[''][i] for part in every) for i in (0, 1))
    values, violations, counts = {}, {}, {}
    for c in ascent.constraints:
        told = _values(c, [part[c.name] for part in every])
        far = np.nan_to_num(np.where(c.kind == 'equality', np.abs(told), told), nan=-np.inf)
        values[c.name] = float(told[np.argmax(far)])
        counts[c.name] = told.size
        violations[c.name] = float(violation(Term(c.kind, values[c.name], 0.0)))
    return Judgement(float(loss / count), values, violations, counts)


def _values(constraint: Constraint, parts: list[Any]) -> np.ndarray:
    """Every value of a constraint, in one vector: of all workers together, or of each."""
    if constraint.over == 'none':
        every = [tuple(x[0] for x in parts[0])]
    elif constraint.over == 'example':
        every = [(x.reshape(-1), w.reshape(-1)) for x, w in parts]
    else:
        total = [sum(column) for column in zip(*parts, strict=True)]  # [W, ...] each
        each = [tuple(x[i] for x in total) for i in range(len(total[0]))]
        every = each if constraint.per_worker else [tuple(x.sum(0) for x in total)]
    return np.concatenate([_known(constraint, sums) for sums in every])


def _known(constraint: Constraint, sums: Any) -> np.ndarray:
    arrays = tuple(jnp.asarray(x) for x in sums)
    value = jnp.where(constraint.known(arrays), constraint.value(arrays), jnp.nan)
    return np.asarray(value, np.float64).reshape(-1)
