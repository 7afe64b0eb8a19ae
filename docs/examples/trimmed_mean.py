"""The trimmed mean, entry by entry: an average that a few wrong workers cannot move far (Yin et al. 2018)."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.core import collectives
from jaxdist.core.registry import algorithm


def bounded_by_the_honest() -> laws.Law:
    """With worker 0 wrong a million times over, every update still lies between what the others say."""

    def check(trial: laws.Trial) -> None:
        wrong = jax.tree.map(lambda g: np.concatenate([1e6 * g[:, :1], g[:, 1:]], axis=1), trial.gradients(3))
        updates = trial.run(wrong).updates
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(wrong), strict=True):
            low, high = g[:, 1:].min(1, keepdims=True), g[:, 1:].max(1, keepdims=True)
            if not ((low <= u) & (u <= high)).all():
                raise laws.LawBroken('an update lies outside of what the honest workers say')

    return laws.Law('bounded by the honest', check)


@algorithm(
    paper='Yin et al. 2018, arXiv 1803.01498',
    examples={
        'trimmed_mean(trim=1)': (
            laws.agrees(),
            bounded_by_the_honest(),
            laws.sends(lambda workers, params: Fraction(4 * (workers - 1) * laws.entries(params))),
        ),
        'trimmed_mean(trim=0)': (laws.equals('mean()'),),
    },
    syncs='updates',
)
def trimmed_mean(trim: int = 1, axis: str = collectives.AXIS) -> optax.GradientTransformationExtraArgs:
    """Drops the `trim` largest and smallest values of each entry, and averages the rest.

    Everybody gathers everything, which is what it costs: W - 1 times the bytes of the gradient.
    """

    def update(updates: optax.Updates, state: Any, params: Any = None, **_: Any) -> tuple[optax.Updates, Any]:
        del params
        if collectives.axis_size(axis) <= 2 * trim:
            raise ValueError(
                f'trim={trim} leaves nothing of {collectives.axis_size(axis)} workers: it takes {2 * trim + 1} or more'
            )

        def middle(u: jax.Array) -> jax.Array:
            everybody = jnp.sort(collectives.all_gather(u, axis), axis=0)  # [W, ...]
            return jnp.mean(everybody[trim : everybody.shape[0] - trim], axis=0)

        return jax.tree.map(middle, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
