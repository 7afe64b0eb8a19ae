"""Sparsity as a constraint: at most a part of the weights may be larger than nothing.

As in Gallego-Posada et al. 2022 (arXiv 2208.04425) the density is bounded rather than punished; the proxy here is a
smooth count of weights and needs no gates in the model.
"""

import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint, inequality
from jaxdist.constraints.selection import select
from jaxdist.registry import constraint


@constraint(paper='Gallego-Posada et al. 2022, arXiv 2208.04425', examples={'density(bound=0.2)': ()})
def density(bound: float, path: str = '.*kernel', small: float = 0.01, width: float = 0.1) -> Constraint:
    """At most this part of the weights is larger than `small`; the others can be cut off with little harm.

    The gradient is that of a smooth count, the mean of w^2 / (w^2 + width^2) over the weights; the multiplier is fed
    with the true one, the part of the weights with |w| > small.

    Args:
        bound: between 0 and 1.
        path: a regular expression that the whole path of a parameter must match.
        small: what counts as nothing.
        width: of the smooth count: of weights far above it, the count has no gradient.

    Raises:
        ValueError: a bound that is no part, or a size that is not above 0.

    >>> thin = density(bound=0.25)
    >>> float(thin.value(thin.judged({'kernel': jnp.array([0.5, -0.4, 0.001, 0.0])}, {})))
    0.25
    """
    if not (0 < bound < 1 and small > 0 and width > 0):
        raise ValueError(f'density(bound={bound}, small={small}, width={width}): a part between 0 and 1, sizes above 0')

    def weights(params: object) -> jnp.ndarray:
        return jnp.concatenate([tensor.reshape(-1) for tensor in select(params, path)])

    def smooth(params: object) -> jnp.ndarray:
        squares = jnp.square(weights(params))
        return jnp.mean(squares / (squares + width**2))

    def true(params: object) -> jnp.ndarray:
        return jnp.mean((jnp.abs(weights(params)) > small).astype(float))

    return inequality('density', smooth, bound=bound, true=true)
