"""Data sets of arrays."""

from typing import Any

import numpy as np
import pytest

from jaxdist.data import ByLabel, from_arrays

X, Y = np.arange(60.0).reshape(20, 3), np.arange(20) % 4


def rows(batch: Any) -> set[tuple[float, ...]]:
    return {tuple(row) for row in np.asarray(batch['x']).tolist()}


def test_each_example_is_either_trained_on_or_held_out() -> None:
    data = from_arrays(X, Y)
    assert (data.task.kind, data.task.shape, data.task.classes) == ('classes', (3,), 4)
    train = data.batch(0, 0, 16, 4)
    held = list(data.held_out(4))
    assert rows(train) | rows(held[0]) == {tuple(row) for row in X.tolist()}
    assert not rows(train) & rows(held[0])
    for batch in (train, held[0]):
        assert np.array_equal(batch['y'], (np.asarray(batch['x'])[:, 0] / 3) % 4)
        assert (batch['x'].dtype, batch['y'].dtype) == (np.float32, np.int32)


def test_a_held_out_part_may_be_given() -> None:
    data = from_arrays(X, Y, held_out=(X[:5] + 100, Y[:5] + 2))
    assert data.task.classes == 6
    assert (data.facts['examples'], data.facts['held_out']) == (20, 5)
    (batch,) = data.held_out(5)
    np.testing.assert_array_equal(batch['x'], X[:5] + 100)


def test_values_and_standardised_inputs() -> None:
    data = from_arrays(X, X[:, 0], standardise=True, held_out=(X, X[:, 0]))
    assert data.task.kind == 'values'
    batch = data.batch(0, 0, 20, 1)
    np.testing.assert_allclose(np.asarray(batch['x']).mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(batch['x']).std(0), 1, rtol=1e-6)
    assert from_arrays(X, Y, kind='values').task.kind == 'values'
    assert from_arrays(X, Y == 1).task.classes == 2


def test_examples_are_divided_as_asked() -> None:
    batch = from_arrays(X, Y, held_out=(X, Y), division=ByLabel(1)).batch(0, 0, 20, 4)
    labels = np.asarray(batch['y']).reshape(4, 5)
    assert all(len(set(part)) == 1 for part in labels.tolist())


@pytest.mark.parametrize(
    'arguments, problem',
    [
        ({'y': Y[:3]}, r'inputs \[N, ...\] and targets \[N\] .* shapes are \(20, 3\) and \(3,\)'),
        ({'x': X[:0], 'y': Y[:0]}, 'with 1 example or more'),
        ({'x': X[:, 0]}, 'their shapes are'),
        ({'y': Y - 1}, 'labels are whole numbers from 0 on; there are -1 to 2'),
        ({'y': Y + 0.5, 'kind': 'classes'}, 'labels are whole numbers'),
        ({'x': np.where(X == 3, np.nan, X)}, 'x of x, y has 1 numbers that are not finite'),
        ({'y': Y.astype(str)}, 'y of x, y is <U21, and must be real numbers'),
        ({'held_out': (X[:, :2], Y)}, r'held_out has inputs of shape \(2,\), and training \(3,\)'),
        ({'held_out': 1.5}, 'held_out=1.5 must be a fraction'),
    ],
)
def test_arrays_that_do_not_fit_are_named(arguments: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_arrays(**{'x': X, 'y': Y, **arguments})
