"""Constraints by name: density, squared norm, and two of fairness.

As in Gallego-Posada et al. 2022 (arXiv 2208.04425) the density is bounded rather than penalised. The fairness constraints
need `group` [B], 0 or 1, in the batch; their rates are ratios of sums over all workers' examples.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint, Measure, inequality
from jaxdist.core.errors import InputError
from jaxdist.core.mesh import path_text
from jaxdist.core.registry import constraint
from jaxdist.core.types import Batch, Model, Params


def select(params: Params, path: str) -> list[jax.Array]:
    """The tensors whose whole path the regular expression matches, in the order of the tree.

    Raises:
        InputError: no path matches; the text has the paths that there are.

    >>> select({'up': {'bias': 1.0, 'kernel': 2.0}}, '.*kernel')
    [2.0]
    """
    every = [(path_text(at), tensor) for at, tensor in jax.tree_util.tree_flatten_with_path(params)[0]]
    found = [tensor for name, tensor in every if re.fullmatch(path, name)]
    if not found:
        raise InputError(f'no parameter has a path like {path!r}; they are {", ".join(name for name, _ in every)}')
    return found


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
        InputError: a bound that is no part, or a size that is not above 0.

    >>> thin = density(bound=0.25)
    >>> float(thin.value(thin.judged({'kernel': jnp.array([0.5, -0.4, 0.001, 0.0])}, {})))
    0.25
    """
    if not (0 < bound < 1 and small > 0 and width > 0):
        raise InputError(f'density(bound={bound}, small={small}, width={width}): a part between 0 and 1, sizes above 0')

    def weights(params: object) -> jnp.ndarray:
        return jnp.concatenate([tensor.reshape(-1) for tensor in select(params, path)])

    def smooth(params: object) -> jnp.ndarray:
        squares = jnp.square(weights(params))
        return jnp.mean(squares / (squares + width**2))

    def true(params: object) -> jnp.ndarray:
        return jnp.mean((jnp.abs(weights(params)) > small).astype(float))

    return inequality('density', smooth, bound=bound, true=true)


@constraint(paper='none', examples={'squared_norm(bound=4.0)': ()})
def squared_norm(bound: float, path: str = '.*', each: bool = False) -> Constraint:
    """The squared Euclidean norm of parameters is at most a bound: |w|^2 <= bound.

    Args:
        bound: above 0.
        path: a regular expression that the whole path of a parameter must match, as `.*kernel`.
        each: whether each tensor's norm is bounded, with a multiplier each, or that of all together.

    Raises:
        InputError: a bound that is not above 0.

    >>> ball = squared_norm(bound=1.0, path='.*kernel', each=True)
    >>> ball.value(ball.sums({'a': {'kernel': jnp.ones(3)}, 'b': {'kernel': jnp.zeros(2), 'bias': jnp.ones(9)}}, {}))
    Array([ 2., -1.], dtype=float32)
    """
    if not bound > 0:
        raise InputError(f'bound={bound} of squared_norm must be above 0')

    def measure(params: object) -> object:
        norms = jnp.stack([jnp.sum(jnp.square(tensor)) for tensor in select(params, path)])
        return norms if each else norms.sum()

    return inequality('squared_norm', measure, bound=bound)


Counted = Callable[[Batch], jax.Array]
"""Which examples a rate is over: `batch -> [B]`, 1 or 0."""


@constraint(paper='Dwork et al. 2012, arXiv 1104.3913', examples={'demographic_parity(gap=0.05)': ()})
def demographic_parity(model: Model, gap: float = 0.05) -> Constraint:
    """The rates at which two groups are predicted positive differ by `gap` at most.

    Of real numbers to predict, the mean predictions differ by `gap` at most.

    Args:
        model: two classes, the second of which is positive, or values.
        gap: 0 or more.

    Raises:
        InputError: a gap below 0, or a model of more classes, or of tokens.

    >>> from jaxdist.core.types import Task
    >>> outputs = lambda params, batch: batch['x']
    >>> fair = demographic_parity(Model(None, None, (), outputs, Task('classes', (2,), 2)), gap=0.25)
    >>> batch = {'x': jnp.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), 'group': jnp.array([0, 0, 1, 1])}
    >>> fair.value(fair.judged({}, batch))  # rates of 1 and 1/2: a gap of 1/2, 1/4 too large
    Array([-0.75,  0.25], dtype=float32)
    """
    return _gap('demographic_parity', model, gap, lambda batch: jnp.ones(batch['y' if 'y' in batch else 'x'].shape[0]))


@constraint(paper='Hardt et al. 2016, arXiv 1610.02413', examples={'equal_opportunity(gap=0.05)': ()})
def equal_opportunity(model: Model, gap: float = 0.05) -> Constraint:
    """The rates at which the positive of two groups are predicted positive differ by `gap` at most.

    Args:
        model: two classes, the second of which is positive.
        gap: 0 or more.

    Raises:
        InputError: a gap below 0, or a model of another task.

    >>> from jaxdist.core.types import Task
    >>> equal_opportunity(Model(None, None, (), None, Task('values', (2,), 1)))
    Traceback (most recent call last):
    jaxdist.InputError: equal_opportunity compares rates of positive labels, and needs a task of two classes, not values
    """
    if model.task is not None and model.task.kind == 'values':
        raise InputError(
            'equal_opportunity compares rates of positive labels, and needs a task of two classes, not values'
        )
    return _gap('equal_opportunity', model, gap, lambda batch: (batch['y'] == 1).astype(float))


def _gap(name: str, model: Model, gap: float, counted: Counted) -> Constraint:
    task = model.task
    if gap < 0:
        raise InputError(f'gap={gap} of {name} must be 0 or more')
    if task is None or not (task.kind == 'values' or (task.kind == 'classes' and task.classes == 2)):
        what = 'an unknown task' if task is None else f'{task.classes} {task.kind}'
        raise InputError(f'{name} compares two groups in a task of two classes or of values; the model has {what}')

    def rates(positive: Callable[[jax.Array], jax.Array]) -> Measure:
        def measure(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            if 'group' not in batch:
                raise InputError(
                    f"{name} needs batches with `group` [B], 0 or 1: give the data a group, as Table(group='sex')"
                )
            assert model.outputs is not None
            who = jax.nn.one_hot(batch['group'], 2) * (counted(batch) * batch.get('weight', 1.0))[:, None]  # [B, 2]
            return positive(model.outputs(params, batch)) @ who, who.sum(0)

        return measure

    def both(rate: jax.Array) -> jax.Array:
        return jnp.stack([rate[1] - rate[0], rate[0] - rate[1]])

    if task.kind == 'values':
        return inequality(name, rates(lambda out: out[:, 0]), over='ratio', then=both, bound=gap)
    margin = lambda out: out[:, 1] - out[:, 0]  # noqa: E731
    smooth = rates(lambda out: jax.nn.sigmoid(margin(out)))
    hard = rates(lambda out: (margin(out) > 0).astype(float))
    return inequality(name, smooth, over='ratio', then=both, bound=gap, true=hard)
