"""Registered constraints: weight density, squared norm, and two of group fairness.

The norm and the density are functions of the parameters alone. The fairness constraints compare rates of two groups,
and need `group` [B], 0 or 1, in the batch.
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
    """The tensors whose whole path matches the regular expression, in the order of the tree.

    Raises:
        InputError: no path matches; the message lists the paths of the tree.

    >>> select({'up': {'bias': 1.0, 'kernel': 2.0}}, '.*kernel')
    [2.0]
    """
    leaves = [(path_text(keys), tensor) for keys, tensor in jax.tree_util.tree_flatten_with_path(params)[0]]
    selected = [tensor for name, tensor in leaves if re.fullmatch(path, name)]
    if not selected:
        raise InputError(f'no parameter has a path like {path!r}; they are {", ".join(name for name, _ in leaves)}')
    return selected


@constraint(paper='Gallego-Posada et al. 2022, arXiv 2208.04425', examples={'density(bound=0.2)': ()})
def density(bound: float, path: str = '.*kernel', small: float = 0.01, width: float = 0.1) -> Constraint:
    """The fraction of weights with |w| > `small` is at most `bound`: a constraint on sparsity.

    As in the paper the density is bounded rather than penalised. Deviation: the paper's proxy is the expected number of
    open stochastic gates. Here the gradient is that of a smooth count, the mean of w^2 / (w^2 + width^2) over the
    weights, which needs no gates in the model. The multiplier is fed with the true density. After training, weights
    of at most `small` can be set to 0 with little harm.

    Args:
        bound: the largest density, between 0 and 1.
        path: a regular expression that the whole path of a parameter must match.
        small: weights of at most this size count as 0.
        width: the scale of the smooth count, which has no gradient for weights far above it.

    Raises:
        InputError: a bound that is not between 0 and 1, or a size that is not above 0.

    >>> import numpy as np
    >>> sparse = density(bound=0.25)
    >>> float(sparse.value(sparse.judged({'kernel': np.array([0.5, -0.4, 0.001, 0.0])}, {})))
    0.25
    """
    if not (0 < bound < 1 and small > 0 and width > 0):
        raise InputError(
            f'density(bound={bound}, small={small}, width={width}): bound must be between 0 and 1, the others above 0'
        )

    def weights(params: Params) -> jax.Array:
        return jnp.concatenate([tensor.reshape(-1) for tensor in select(params, path)])

    def smooth(params: Params) -> jax.Array:
        squares = jnp.square(weights(params))
        return jnp.mean(squares / (squares + width**2))

    def true(params: Params) -> jax.Array:
        return jnp.mean((jnp.abs(weights(params)) > small).astype(float))

    return inequality('density', smooth, bound=bound, true=true)


@constraint(paper='none', examples={'squared_norm(bound=4.0)': ()})
def squared_norm(bound: float, path: str = '.*', each: bool = False) -> Constraint:
    """The squared Euclidean norm of parameters is at most a bound: |w|^2 <= bound.

    Args:
        bound: the largest squared norm, above 0.
        path: a regular expression that the whole path of a parameter must match, as `.*kernel`.
        each: whether each tensor's norm is bounded, with one multiplier per tensor, or the norm of all together.

    Raises:
        InputError: a bound that is not above 0.

    >>> import numpy as np
    >>> ball = squared_norm(bound=1.0, path='.*kernel', each=True)
    >>> params = {'a': {'kernel': np.ones(3)}, 'b': {'kernel': np.zeros(2), 'bias': np.ones(9)}}
    >>> ball.value(ball.sums(params, {}))
    Array([ 2., -1.], dtype=float32)
    """
    if not bound > 0:
        raise InputError(f'bound={bound} of squared_norm must be above 0')

    def measure(params: Params) -> jax.Array:
        norms = jnp.stack([jnp.sum(jnp.square(tensor)) for tensor in select(params, path)])
        return norms if each else norms.sum()

    return inequality('squared_norm', measure, bound=bound)


Counted = Callable[[Batch], jax.Array]
"""Which examples a rate is over: `batch -> [B]`, 1 or 0."""


@constraint(paper='Dwork et al. 2012, arXiv 1104.3913', examples={'demographic_parity(gap=0.05)': ()})
def demographic_parity(model: Model, gap: float = 0.05) -> Constraint:
    """The rates of positive predictions in two groups differ by at most `gap`; for regression, the mean predictions.

    Rates are ratios of sums over the examples of all workers. The mean over workers of local rates would be wrong, and
    undefined where a worker has no example of a group. As in Cotter et al. 2019 (arXiv 1809.04198) the gradient is that
    of a proxy, here a sigmoid of the margin, and the multipliers are fed with the true rates. Batches need `group` [B],
    0 or 1.

    Args:
        model: a model of two classes, the second of which is positive, or of real values.
        gap: the largest difference, 0 or more.

    Raises:
        InputError: a gap below 0, or a model of another task; when the measure is called, a batch without `group`.

    >>> import numpy as np
    >>> from jaxdist.core.types import Task
    >>> outputs = lambda params, batch: batch['x']
    >>> fair = demographic_parity(Model(None, None, (), outputs, Task('classes', (2,), 2)), gap=0.25)
    >>> batch = {'x': np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), 'group': np.array([0, 0, 1, 1])}
    >>> fair.value(fair.judged({}, batch))  # rates of 1 and 1/2: a difference of 1/2, which is 1/4 above the bound
    Array([-0.75,  0.25], dtype=float32)
    """
    return _gap('demographic_parity', model, gap, lambda batch: jnp.ones(batch['y' if 'y' in batch else 'x'].shape[0]))


@constraint(paper='Hardt et al. 2016, arXiv 1610.02413', examples={'equal_opportunity(gap=0.05)': ()})
def equal_opportunity(model: Model, gap: float = 0.05) -> Constraint:
    """The true positive rates of two groups differ by at most `gap`; otherwise as `demographic_parity`.

    Args:
        model: a model of two classes, the second of which is positive.
        gap: the largest difference, 0 or more.

    Raises:
        InputError: a gap below 0, or a model of another task; when the measure is called, a batch without `group`.

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
        actual = 'an unknown task' if task is None else f'{task.classes} {task.kind}'
        raise InputError(f'{name} compares two groups in a task of two classes or of values; the model has {actual}')

    def rates(positive: Callable[[jax.Array], jax.Array]) -> Measure:
        def measure(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            if 'group' not in batch:
                raise InputError(
                    f"{name} needs batches with `group` [B], 0 or 1: give the data a group, as Table(group='sex')"
                )
            assert model.outputs is not None
            members = jax.nn.one_hot(batch['group'], 2) * (counted(batch) * batch.get('weight', 1.0))[:, None]  # [B, 2]
            return positive(model.outputs(params, batch)) @ members, members.sum(0)

        return measure

    def differences(rate: jax.Array) -> jax.Array:
        # Two smooth values, one per sign: the absolute difference has no gradient at 0.
        return jnp.stack([rate[1] - rate[0], rate[0] - rate[1]])

    if task.kind == 'values':
        return inequality(name, rates(lambda out: out[:, 0]), over='ratio', then=differences, bound=gap)
    margin = lambda out: out[:, 1] - out[:, 0]  # noqa: E731
    smooth = rates(lambda out: jax.nn.sigmoid(margin(out)))
    hard = rates(lambda out: (margin(out) > 0).astype(float))
    return inequality(name, smooth, over='ratio', then=differences, bound=gap, true=hard)
