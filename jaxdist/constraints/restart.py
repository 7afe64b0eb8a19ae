"""Multipliers that start again: 0 at once where an inequality holds (Gallego-Posada et al. 2022, arXiv 2208.04425)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.registry import dual


@dual(paper='Gallego-Posada et al. 2022, arXiv 2208.04425', examples={'sgd(0.01) | restart()': ()}, settles=True)
def restart() -> optax.GradientTransformationExtraArgs:
    """Sets the multiplier of an inequality that holds, with room to spare, to 0; it comes last in a dual line.

    A multiplier that has grown while its constraint was violated would otherwise push on for as long again. Those of
    equalities stay. What a controller or a momentum before it remembers is not reset.

    >>> chain = optax.chain(optax.sgd(1.0), restart())
    >>> at = jnp.array([5.0, 5.0])
    >>> told = {'violations': jnp.array([-0.1, 0.1]), 'least': jnp.zeros(2)}
    >>> chain.update(-told['violations'], chain.init(at), at, **told)[0]
    Array([-5. ,  0.1], dtype=float32)
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, violations: Any, least: Any, **_: Any
    ) -> tuple[Any, Any]:
        again = jax.tree.map(
            lambda u, p, v, low: jnp.where((v < 0) & jnp.isfinite(low), -p, u), updates, params, violations, least
        )
        return again, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
