"""Metrics of held-out data: means, functions of sums, functions of rows; and what is wrong with others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist.core.types import Metric, Model
from jaxdist.training.evaluation import collected, evaluator, metrics_of

BATCH = {'x': np.ones((8, 5), np.float32), 'y': np.zeros(8, np.int32), 'weight': np.ones(8, np.float32)}


def model(**fields: Any) -> Model:
    return Model(lambda key: {}, lambda params, batch, key: ({'loss': 1.0}, 1.0), **fields)


def test_metrics_from_sums_and_from_rows() -> None:
    """Macro-F1 from a confusion matrix and the AUC from rows are scikit-learn's, whatever the batches."""
    from sklearn.metrics import f1_score, roc_auc_score

    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 3, 50), rng.normal(size=(50, 5)).astype(np.float32)

    def evaluate(params: Any, batch: Any) -> Any:
        out = batch['x'] @ params
        weight, hot = batch['weight'][:, None, None], jax.nn.one_hot(batch['y'], 3)
        confusion = jnp.sum(weight * hot[:, :, None] * jax.nn.one_hot(out.argmax(-1), 3)[:, None], 0)
        loss = jnp.sum(batch['weight'] * optax.softmax_cross_entropy_with_integer_labels(out, batch['y']))
        rows = {'score': out[:, 1], 'positive': batch['y'] == 1}
        return {'loss': loss, 'confusion': confusion}, batch['weight'].sum(), rows

    def macro_f1(e: Any) -> float:
        c = e.sums['confusion']
        return float(np.mean(2 * np.diag(c) / (c.sum(0) + c.sum(1))))

    metrics = {
        'macro_f1': Metric('higher', macro_f1),
        'auc': Metric('higher', lambda e: roc_auc_score(e.rows['positive'], e.rows['score'])),
    }
    params = rng.normal(size=(5, 3)).astype(np.float32)
    ours = model(evaluate=evaluate, metrics=metrics)
    padded = []
    for start in range(0, 50, 16):
        rows = np.arange(start, start + 16)
        real = rows < 50
        rows = np.where(real, rows, 0)
        padded.append({'x': x[rows], 'y': y[rows], 'weight': real.astype(np.float32)})
    values = metrics_of(collected((evaluator(ours)(params, batch), batch) for batch in padded), ours.metrics)
    out = x @ params
    assert values['macro_f1'] == pytest.approx(f1_score(y, out.argmax(-1), average='macro'), abs=1e-6)
    assert values['auc'] == pytest.approx(roc_auc_score(y == 1, out[:, 1]), abs=1e-6)
    assert sorted(values) == ['auc', 'loss', 'macro_f1']


@pytest.mark.parametrize(
    'metric, problem',
    [
        (Metric('higher', lambda e: e.sums['hits']), "the metric 'mine' failed: KeyError: 'hits'"),
        (Metric('higher'), "the metric 'mine' is neither a scalar among the sums of evaluate, ..loss"),
    ],
)
def test_a_metric_that_fails_is_named(metric: Metric, problem: str) -> None:
    parts = [(({'loss': 1.0}, 1.0, {}), BATCH)]
    with pytest.raises(ValueError, match=problem):
        metrics_of(collected(parts), {'mine': metric})


@pytest.mark.parametrize(
    'returns, problem',
    [
        (lambda b: {'loss': 1.0}, r'must return \(sums, count\) or'),
        (lambda b: ({'accuracy': 1.0}, 2), "holds 'loss'"),
        (lambda b: ({'loss': 1.0}, 2, {'score': jnp.ones(3)}), r"'score' has shape \(3,\)"),
    ],
)
def test_an_evaluation_of_another_form_is_named(returns: Any, problem: str) -> None:
    ours = model(evaluate=lambda params, batch: returns(batch))
    with pytest.raises(ValueError, match=problem):
        evaluator(ours)({}, BATCH)
