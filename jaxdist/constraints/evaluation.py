"""Evaluates constraints, by their true measures, over many batches at one set of parameters."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.constraints.constraint import Constraint, Sums
from jaxdist.constraints.dual_ascent import DualAscent
from jaxdist.constraints.lagrangian import Term, violation
from jaxdist.core.partition import cast_params
from jaxdist.core.types import Batch, Params

BatchSums = dict[str, tuple[Any, ...]]
"""Sums over one batch: by constraint name, [W, ...] each, one entry per worker; under '' the loss and its count."""


class Judgement(NamedTuple):
    """Constraints evaluated at one set of parameters.

    Attributes:
        loss: the mean loss over the same examples.
        values: by constraint name, the value with the largest violation; NaN where it is unknown.
        violations: by constraint name, the largest violation.
        counts: by constraint name, the number of values.
    """

    loss: float
    values: dict[str, float]
    violations: dict[str, float]
    counts: dict[str, int]

    def holds(self, tolerance: float) -> bool:
        """Whether no violation exceeds the tolerance, and none is unknown."""
        return all(x <= tolerance for x in self.violations.values())


def make_measure(
    ascent: DualAscent, evaluate: Callable[..., Any], workers: int, compute: jax.typing.DTypeLike | None
) -> Callable[[Params, Batch], BatchSums]:
    """The function `(params, batch [B, ...]) -> sums` of the loss and, for each worker's part, of the constraints.

    Args:
        ascent: the constraints.
        evaluate: `(params, batch) -> (sums, count, ...)`, with `sums['loss']`; params may be `Variables`.
        workers: the number of workers, which divides B.
        compute: the dtype to which the parameters are cast; None for theirs. A constraint on parameters alone always
            gets them as they are.

    >>> from jaxdist.constraints.constraint import inequality
    >>> large = inequality('large', lambda p, b: b['x'] * p, over='mean', per_worker=True, bound=2.0)
    >>> measure = make_measure(DualAscent((large,)), lambda p, b: ({'loss': b['x'].sum()}, 4), 2, None)
    >>> measure(1.0, {'x': np.arange(4.0, dtype=np.float32)})['large']
    (Array([1., 5.], dtype=float32), Array([2., 2.], dtype=float32))
    """

    def measure(params: Params, batch: Batch) -> BatchSums:
        cast = cast_params(params, compute)
        sums, count, *_ = evaluate(cast, batch)
        parts = jax.tree.map(lambda x: x.reshape(workers, x.shape[0] // workers, *x.shape[1:]), batch)

        def per_worker(constraint: Constraint) -> Sums:
            at = params if constraint.over == 'none' else cast
            return jax.vmap(lambda part: constraint.judged(at, part))(parts)

        return {'': (sums['loss'], jnp.asarray(count, float)), **{c.name: per_worker(c) for c in ascent.constraints}}

    return measure


def judge(ascent: DualAscent, batches: Iterable[BatchSums]) -> Judgement:
    """The judgement over several batches.

    Args:
        ascent: the constraints.
        batches: the sums over each batch, from the function that `make_measure` returns; at least one.

    >>> from jaxdist.constraints.constraint import inequality
    >>> ascent = DualAscent((inequality('large', lambda p, b: b['x'], over='mean', bound=2.0),))
    >>> judge(ascent, [{'': (1.0, 2.0), 'large': (np.array([1.0, 5.0]), np.array([1.0, 1.0]))}])
    Judgement(loss=0.5, values={'large': 1.0}, violations={'large': 1.0}, counts={'large': 1})
    """
    every = [jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums)) for sums in batches]
    loss, count = (sum(sums[''][i] for sums in every) for i in (0, 1))
    values, violations, counts = {}, {}, {}
    for c in ascent.constraints:
        each = _values(c, [sums[c.name] for sums in every])
        excess = np.nan_to_num(np.where(c.kind == 'equality', np.abs(each), each), nan=-np.inf)
        values[c.name] = float(each[np.argmax(excess)])
        counts[c.name] = each.size
        violations[c.name] = float(violation(Term(c.kind, values[c.name], 0.0)))
    return Judgement(float(loss / count), values, violations, counts)


def _values(constraint: Constraint, batches: list[Any]) -> np.ndarray:
    """Every value of a constraint, in one vector: over all workers together, or one per worker or example."""
    if constraint.over == 'none':
        every = [tuple(x[0] for x in batches[0])]
    elif constraint.over == 'example':
        every = [(x.reshape(-1), w.reshape(-1)) for x, w in batches]
    else:
        total = [sum(column) for column in zip(*batches, strict=True)]  # [W, ...] each
        each = [tuple(x[i] for x in total) for i in range(len(total[0]))]
        every = each if constraint.per_worker else [tuple(x.sum(0) for x in total)]
    return np.concatenate([_value_or_nan(constraint, sums) for sums in every])


def _value_or_nan(constraint: Constraint, sums: Any) -> np.ndarray:
    arrays = tuple(jnp.asarray(x) for x in sums)
    value = jnp.where(constraint.known(arrays), constraint.value(arrays), jnp.nan)
    return np.asarray(value, np.float64).reshape(-1)
