"""The types that a data set, a model and the step share."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Params = Any
"""A pytree of arrays: the model's parameters."""

Batch = dict[str, Any]
"""Arrays with a leading batch dim. Tokens: `tokens` [B, T+1]. Else `x` [B, ...] and `y` [B].

`weight` [B] is there only where examples count unequally; without it every example counts as one. Models look at these
alone. For constraints there may be `group` [B], 0 or 1, by which a fair model is judged; and, in training where each
worker draws from its own part of the examples, `row` [B], the number of the example within that part, from 0 on.
"""

Metrics = dict[str, Any]
"""A step's metrics by name: arrays [W], one entry a worker, or what an objective reports (nested dicts)."""

Loss = Callable[[Params, Batch, jax.Array], tuple[dict[str, jax.Array], jax.Array]]
"""`(params, batch, key) -> (sums, count)`: scalar sums over the batch, of which `sums['loss']` is minimised, and
their count.

Sums and counts rather than means, so that uneven shards, masks and accumulation give the exact global mean.
"""


class Task(NamedTuple):
    """What is to be predicted, and from what.

    Attributes:
        kind: `tokens` (the next one, at every position), `classes` (one label) or `values` (one real number).
        shape: the shape of one example's input, without the batch dim: `(T,)` for tokens.
        classes: the size of the vocabulary, the number of labels, or 1 for values.
    """

    kind: Literal['tokens', 'classes', 'values']
    shape: tuple[int, ...]
    classes: int


class Model(NamedTuple):
    """A model on plain pytrees.

    Attributes:
        init: `key -> params`.
        loss: see `Loss`.
        rules: how parameters are cut over the `model` mesh axis: (regular expression of the parameter's path,
            one mesh axis or None for each dim); see `jaxdist.core.mesh.specs`.
        outputs: `(params, batch) -> outputs`: [B, T, classes] for tokens, else [B, classes]; None if it is not told.
        task: what is predicted, if it is told.
    """

    init: Callable[[jax.Array], Params]
    loss: Loss
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    outputs: Callable[[Params, Batch], jax.Array] | None = None
    task: Task | None = None
