"""Evaluation on held-out data: sums over batches, and the metrics that follow from them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Evaluation, Metric, Model


def evaluator(model: Model) -> Callable[[Any, Batch], tuple[dict[str, Any], Any, dict[str, Any]]]:
    """`(params, batch) -> (sums, count, rows)` of a model in evaluation; see `jaxdist.core.types.Model.evaluate`.

    Raises:
        InputError: when it is called, the model's function returns something else.

    >>> loss = lambda params, batch, key: ({'loss': params * batch['x'].sum()}, 2)
    >>> evaluator(Model(None, loss))(2.0, {'x': np.arange(3)})
    ({'loss': np.float64(6.0)}, 2, {})
    """

    def evaluate(params: Any, batch: Batch) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        if model.evaluate is None:
            sums, count, *_ = model.loss(params, batch, jax.random.key(0))
            return sums, count, {}
        out = model.evaluate(params, batch)
        if not (isinstance(out, tuple) and len(out) in (2, 3) and isinstance(out[0], dict) and 'loss' in out[0]):
            raise InputError(
                "the model's evaluate must return (sums, count) or (sums, count, rows) with sums a dict that holds "
                f"'loss', as in ({{'loss': jnp.sum(...)}}, batch_size); it returned {out}"
            )
        rows = out[2] if len(out) == 3 else {}
        size = next(iter(batch.values())).shape[0]
        for name, x in rows.items():
            if x.shape[:1] != (size,):
                raise InputError(f'rows of evaluate are arrays [{size}, ...] here; {name!r} has shape {x.shape}')
        return out[0], out[1], rows

    return evaluate


def collected(parts: Iterable[tuple[Any, Batch]]) -> Evaluation:
    """The evaluation of a data set from that of its batches.

    Args:
        parts: for each batch what `evaluator` returned, and the batch; rows of weight 0 are padding.

    >>> padded = {'weight': np.array([1.0, 0.0])}
    >>> collected([(({'loss': 2.0}, 1.0, {'score': np.array([0.5, 9.0])}), padded)])
    Evaluation(sums={'loss': np.float64(2.0)}, examples=1.0, rows={'score': array([0.5])})
    """
    every = [(jax.device_get(out), np.asarray(batch['weight']) > 0) for out, batch in parts]
    sums, count = jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0, dtype=np.float64), *(out[:2] for out, _ in every))
    rows = {name: np.concatenate([out[2][name][real] for out, real in every]) for name in every[0][0][2]}
    return Evaluation(sums, float(count), rows)


def metrics_of(evaluation: Evaluation, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The metrics of an evaluation by name: the mean of each scalar sum, and those that compute their own value.

    Args:
        evaluation: the evaluation.
        metrics: the model's metrics.

    Raises:
        InputError: a metric fails, returns no number, or has neither a sum nor a function.

    >>> f1 = Metric('higher', lambda e: 2 * e.sums['hits'][0] / e.sums['hits'].sum())
    >>> metrics_of(Evaluation({'loss': np.float64(6), 'hits': np.array([3.0, 1.0])}, 2.0, {}), {'f1': f1})
    {'loss': 3.0, 'f1': 1.5}
    """
    values = {name: float(x / evaluation.examples) for name, x in evaluation.sums.items() if np.ndim(x) == 0}
    for name, metric in metrics.items():
        if metric.of is not None:
            try:
                values[name] = float(metric.of(evaluation))
            except Exception as error:  # a user's function may raise anything
                raise InputError(f'the metric {name!r} failed: {type(error).__name__}: {error}') from error
        elif name not in values:
            raise InputError(
                f'the metric {name!r} is neither a scalar among the sums of evaluate, {sorted(evaluation.sums)}, nor '
                'has it a function `of`'
            )
    return values
