"""Bounded norms of parameters: of the model as a whole, or of every tensor by itself."""

import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint, inequality
from jaxdist.constraints.selection import select
from jaxdist.registry import constraint


@constraint(paper='none', examples={'squared_norm(bound=4.0)': ()})
def squared_norm(bound: float, path: str = '.*', each: bool = False) -> Constraint:
    """The squared Euclidean norm of parameters is at most a bound: |w|^2 <= bound.

    Args:
        bound: above 0.
        path: a regular expression that the whole path of a parameter must match, as `.*kernel`.
        each: whether each tensor's norm is bounded, with a multiplier each, or that of all together.

    Raises:
        ValueError: a bound that is not above 0.

    >>> ball = squared_norm(bound=1.0, path='.*kernel', each=True)
    >>> ball.value(ball.sums({'a': {'kernel': jnp.ones(3)}, 'b': {'kernel': jnp.zeros(2), 'bias': jnp.ones(9)}}, {}))
    Array([ 2., -1.], dtype=float32)
    """
    if not bound > 0:
        raise ValueError(f'bound={bound} of squared_norm must be above 0')

    def measure(params: object) -> object:
        norms = jnp.stack([jnp.sum(jnp.square(tensor)) for tensor in select(params, path)])
        return norms if each else norms.sum()

    return inequality('squared_norm', measure, bound=bound)
