"""Steps of multipliers as long as the penalty: the method of multipliers (Hestenes 1969; Powell 1969)."""

from typing import Any

import jax
import optax

from jaxdist.registry import dual


@dual(paper='Hestenes 1969, Multiplier and gradient methods', examples={'scale_by_penalty() | sgd(1.0)': ()})
def scale_by_penalty() -> optax.GradientTransformationExtraArgs:
    """Multiplies what multipliers are moved by with the penalty: followed by sgd(1.0), l <- l + c g.

    >>> chain = optax.chain(scale_by_penalty(), optax.sgd(1.0))
    >>> float(chain.update(-0.5, chain.init(0.0), 0.0, penalty=4.0)[0])
    2.0
    """

    def update(updates: Any, state: Any, params: Any = None, *, penalty: Any, **_: Any) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda u: u * penalty, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
