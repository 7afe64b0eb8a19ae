"""The coordinate-wise trimmed mean: robust to a few Byzantine workers (Yin et al. 2018)."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.core import collectives
from jaxdist.core.registry import algorithm


def within_honest_range() -> laws.Law:
    """With worker 0's gradient scaled by a million, every update stays within the range of the other workers'."""

    def check(trial: laws.Trial) -> None:
        attacked = jax.tree.map(lambda g: np.concatenate([1e6 * g[:, :1], g[:, 1:]], axis=1), trial.gradients(3))
        updates = trial.run(attacked).updates
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(attacked), strict=True):
            low, high = g[:, 1:].min(1, keepdims=True), g[:, 1:].max(1, keepdims=True)
            if not ((low <= u) & (u <= high)).all():
                raise laws.LawBroken("an update is outside the range of the honest workers' gradients")

    return laws.Law('within the range of honest workers', check)


@algorithm(
    paper='Yin et al. 2018, arXiv 1803.01498',
    examples={
        'trimmed_mean(trim=1)': (
            laws.agrees(),
            within_honest_range(),
            laws.sends(lambda workers, params: Fraction(4 * (workers - 1) * laws.entries(params))),
        ),
        'trimmed_mean(trim=0)': (laws.equals('mean()'),),
    },
    syncs='updates',
)
def trimmed_mean(trim: int = 1, axis: str = collectives.AXIS) -> optax.GradientTransformationExtraArgs:
    """Drops the `trim` largest and smallest values of each entry over workers, and averages the rest.

    It stands before the optimiser. Each worker gathers the gradients of all workers, so it sends W - 1 times the bytes
    of the gradient at every step.
    """

    def update(updates: optax.Updates, state: Any, params: Any = None, **_: Any) -> tuple[optax.Updates, Any]:
        del params
        if collectives.axis_size(axis) <= 2 * trim:
            raise ValueError(
                f'trim={trim} leaves nothing of {collectives.axis_size(axis)} workers: it takes {2 * trim + 1} or more'
            )

        def trimmed(u: jax.Array) -> jax.Array:
            # Not an all-reduce: to sort an entry takes the values of all workers.
            gathered = jnp.sort(collectives.all_gather(u, axis), axis=0)  # [W, ...]
            return jnp.mean(gathered[trim : gathered.shape[0] - trim], axis=0)

        return jax.tree.map(trimmed, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
