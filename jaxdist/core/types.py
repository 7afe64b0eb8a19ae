"""Types of parameters, batches, losses and models."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Params = Any
"""A pytree of arrays: the model's parameters, real or complex.

`None` and empty containers are no leaves; numbers become arrays. Of a complex parameter z = x + iy the gradient is that
of x plus i times that of y, as in PyTorch and as optax expects: the conjugate of what `jax.grad` returns.
"""

Batch = dict[str, Any]
"""Arrays with a leading batch dim. Tokens: `tokens` [B, T+1]. Else `x` [B, ...] and `y` [B].

`weight` [B] is given only if examples are weighted; without it every example counts as one. Models use only these keys.
For constraints there may be `group` [B], the 0 or 1 by which fairness is measured; and, in training where each worker
draws from its own part of the examples, `row` [B], the index of the example within that part, from 0.
"""

Metrics = dict[str, Any]
"""A step's metrics by name: arrays [W], one entry for each worker, or an objective's own metrics (nested dicts)."""

Loss = Callable[[Params, Batch, jax.Array], tuple[dict[str, jax.Array], jax.Array]]
"""`(params, batch, key) -> (sums, count)`: scalar sums over the batch, and its example count.

The mean `sums['loss'] / count` is minimised. Sums and counts rather than means, so that uneven shards, masks and
gradient accumulation give the exact global mean.
"""


class Task(NamedTuple):
    """The inputs and targets of a prediction task.

    Attributes:
        kind: `tokens` (the next token, at every position), `classes` (one label) or `values` (one real number).
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
        loss: the loss; see `Loss`.
        rules: sharding rules of the parameters; see `jaxdist.core.mesh.Rules`.
        outputs: `(params, batch) -> outputs`: [B, T, classes] for tokens, else [B, classes]; None if not known.
        task: the task that the model is for; None if not known.
    """

    init: Callable[[jax.Array], Params]
    loss: Loss
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    outputs: Callable[[Params, Batch], jax.Array] | None = None
    task: Task | None = None
