"""The metrics of a step as numbers, over all workers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import cluster
from jaxdist.core.objective import Extreme
from jaxdist.core.types import Metrics


def is_extreme(node: Any) -> bool:
    """Whether a metric is an `Extreme`.

    >>> is_extreme(Extreme(jnp.ones(2), {}))
    True
    """
    return isinstance(node, Extreme)


@jax.jit
def _reduced(metrics: Metrics) -> Metrics:
    """Sums over workers, and of an `Extreme` the values of the worker whose rank is largest."""

    def one(x: Any) -> Any:
        if not is_extreme(x):
            return jnp.sum(x)
        at = jnp.argmax(jnp.where(jnp.isnan(x.rank), -1.0, x.rank))
        return jax.tree.map(lambda row: row[at], x.values)

    return jax.tree.map(one, metrics, is_leaf=is_extreme)


def means(metrics: Metrics) -> dict[str, Any]:
    """A step's metrics as numbers: each sum over all workers' counts; `skipped` is the share of workers that skipped.

    Where workers' gradients are not finite, `not_finite` lists these workers.

    Of an objective's `Extreme` there are the values of the worker that it ranks highest.

    This waits for the step. In several processes all must call it, for it fetches what other processes store.

    >>> means({'loss': jnp.array([2.0, 4.0]), 'count': jnp.array([1.0, 2.0]), 'skipped': jnp.zeros(2)})
    {'loss': 2.0, 'skipped': 0.0}
    """
    w = metrics['skipped'].size
    numbers = jax.tree.map(float, jax.device_get(_reduced(metrics)))
    count = numbers.pop('count')
    skipped = numbers.pop('skipped') / w
    bad = {'not_finite': _workers(metrics['not_finite'])} if numbers.pop('not_finite', 0) else {}
    own = {name: numbers.pop(name) for name in list(numbers) if isinstance(numbers[name], dict)}
    return (
        {name: x / count if count else float('nan') for name, x in numbers.items()} | {'skipped': skipped} | bad | own
    )


def _workers(flags: jax.Array) -> list[int]:
    """The workers whose flag [W] is set; every process has some of them."""
    rows = [(s.index[0].start or 0, np.asarray(s.data)) for s in flags.addressable_shards if s.replica_id == 0]
    here = [int(begin + k) for begin, part in rows for k in np.flatnonzero(part)]
    return sorted(k for each in cluster.gather(here, 'not_finite') for k in each)
