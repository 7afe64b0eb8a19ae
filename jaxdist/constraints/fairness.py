"""Rates of two groups that may differ by so much at most, trained by a proxy and judged by the true rates.

Batches need `group` [B], 0 or 1. Rates are ratios of sums over all workers' examples: the mean of the workers' own
rates would be wrong, and unknown where a worker has nobody of a group. Multipliers are fed with the true rates, as in
Cotter et al. 2019 (arXiv 1809.04198); the proxy is a sigmoid.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdist.constraints.constraint import Constraint, Measure, inequality
from jaxdist.registry import constraint
from jaxdist.task import Batch, Model, Params

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
        ValueError: a gap below 0, or a model of more classes, or of tokens.

    >>> from jaxdist.task import Task
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
        ValueError: a gap below 0, or a model of another task.

    >>> from jaxdist.task import Task
    >>> equal_opportunity(Model(None, None, (), None, Task('values', (2,), 1)))
    Traceback (most recent call last):
    ValueError: equal_opportunity compares rates of positive labels, and needs a task of two classes, not values
    """
    if model.task is not None and model.task.kind == 'values':
        raise ValueError(
            'equal_opportunity compares rates of positive labels, and needs a task of two classes, not values'
        )
    return _gap('equal_opportunity', model, gap, lambda batch: (batch['y'] == 1).astype(float))


def _gap(name: str, model: Model, gap: float, counted: Counted) -> Constraint:
    task = model.task
    if gap < 0:
        raise ValueError(f'gap={gap} of {name} must be 0 or more')
    if task is None or not (task.kind == 'values' or (task.kind == 'classes' and task.classes == 2)):
        what = 'an unknown task' if task is None else f'{task.classes} {task.kind}'
        raise ValueError(f'{name} compares two groups in a task of two classes or of values; the model has {what}')

    def rates(positive: Callable[[jax.Array], jax.Array]) -> Measure:
        def measure(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            if 'group' not in batch:
                raise ValueError(
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
