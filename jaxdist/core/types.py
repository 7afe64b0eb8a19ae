"""Types of parameters, batches, losses and models."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
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


class Variables(NamedTuple):
    """The variables of a model that has a state.

    Attributes:
        params: the parameters, which the update moves.
        state: the model state, which the loss returns anew: running statistics, counters. A pytree of arrays.
    """

    params: Params
    state: Any


Loss = Callable[..., Any]
"""`(params, batch, key) -> (sums, count)`: scalar sums over the batch, a dict of them, and its example count.

The mean `sums['loss'] / count` is minimised. Sums and counts rather than means, so that uneven shards, masks and
gradient accumulation give the exact global mean.

With a model state, where `init` returns `Variables`: `(variables, batch, key) -> (sums, count, state)`, the state after
this batch.
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


class Evaluation(NamedTuple):
    """What was evaluated over a data set, in NumPy.

    Attributes:
        sums: sums over its examples by name, float64 arrays of any shape.
        examples: the example count.
        rows: arrays [N, ...] by name, with a row for each example, in order.
    """

    sums: dict[str, Any]
    examples: float
    rows: dict[str, Any]


class Metric(NamedTuple):
    """A metric of held-out data.

    Attributes:
        better: which values are better, `lower` or `higher`.
        of: `Evaluation -> float`, for a metric that is no mean over examples; None for `sums[name] / examples`.
    """

    better: Literal['lower', 'higher'] = 'lower'
    of: Callable[[Evaluation], float] | None = None


class Parts(NamedTuple):
    """A model in parts, for pipelines: a first part, blocks of one shape one after the other, and a last part.

    Its parameters are a dict: `blocks`, a pytree of arrays [L, ...] with a row for each of L blocks, and `edge`, a
    pytree of all others, which the first and the last part see. The loss of such a model is that of its parts.

    With chunks, arrays are [V, L / V, ...], in the same order: for pipelines whose stages have V chunks each.

    Attributes:
        first: `(edge, batch) -> x`, with x [B, ...].
        block: `(row of blocks, x) -> x`, in the same shape and dtype.
        last: `(edge, x, batch) -> (sums, count)`, as a loss returns them.
        chunks: the number of chunks V; 1 for arrays [L, ...].
        spare: rows at the end that are stored and not evaluated, so that stages divide the rows, and the last one,
            which has the last part too, evaluates fewer blocks.
    """

    first: Callable[[Any, Batch], Any]
    block: Callable[[Any, Any], Any]
    last: Callable[[Any, Any, Batch], Any]
    chunks: int = 1
    spare: int = 0


class Model(NamedTuple):
    """A model on plain pytrees.

    Attributes:
        init: `key -> params`, or `Variables` of a model with a state.
        loss: the loss; see `Loss`.
        rules: sharding rules of the parameters; see `jaxdist.core.mesh.Rules`.
        outputs: `(params, batch) -> outputs` in evaluation, with `Variables` in place of params for a model with a
            state: [B, T, classes] for tokens, else [B, classes]; None if not known.
        task: the task that the model is for; None if not known.
        evaluate: `(params, batch) -> (sums, count)`, or `(sums, count, rows)`, on held-out data, as without dropout and
            with running statistics; `sums['loss']` is a scalar, other sums have any shape, rows are arrays [B, ...].
            None for the loss.
        metrics: the metrics that are no means, and which values are better, by name. Of every other scalar in the sums
            the mean is reported.
        parts: the model in parts; None for a model that has none.
    """

    init: Callable[[jax.Array], Any]
    loss: Loss
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    outputs: Callable[[Any, Batch], jax.Array] | None = None
    task: Task | None = None
    evaluate: Callable[[Any, Batch], Any] | None = None
    metrics: Mapping[str, Metric] = MappingProxyType({})
    parts: Parts | None = None
