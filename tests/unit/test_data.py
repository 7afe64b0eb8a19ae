"""Data sets: batches are pure functions, divisions cover all examples, held-out data are never trained on."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets

from jaxdist.data import ByLabel, Dataset, Digits, Dirichlet, Division, Even, Sizes, Table, Text
from jaxdist.data.sampling import Choose, Parts, at_random, in_epochs, permutation, sampler

PERMUTATION = [0, 3, 7, 5, 1, 2, 6, 4]
AT_RANDOM = [85, 8, 753, 639]
DATASETS = [Text(context=16), Digits(), Table(name='wine'), Table(name='diabetes')]
DIVISIONS = [Even(), ByLabel(), Dirichlet(alpha=1.0), Sizes((3, 1, 2, 2))]


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() and a[k].dtype == b[k].dtype for k in a)


# Batches


@pytest.mark.parametrize('dataset', DATASETS)
def test_a_batch_is_a_pure_function_of_seed_and_step(dataset: Dataset):
    one, other = dataset.load(), dataset.load()
    assert one.facts == other.facts
    ahead = [one.batch(3, step, 8, 2) for step in range(30)]
    for step in (29, 4, 17, 0):  # another process, another order
        assert equal(other.batch(seed=3, step=step, size=8, workers=2), ahead[step])
    assert not equal(ahead[0], ahead[1])
    assert not equal(ahead[0], one.batch(4, 0, 8, 2))


def test_the_order_is_the_same_on_every_machine_and_version():
    assert permutation(8, 0).tolist() == PERMUTATION
    assert at_random(1000, seed=1, stream=2, step=3, size=4).tolist() == AT_RANDOM


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('workers', [2, 3, 24])
def test_divided_evenly_the_global_batch_does_not_depend_on_the_number_of_workers(dataset: Dataset, workers: int):
    data = dataset.load()
    for step in (0, 50):
        assert equal(data.batch(0, step, 24, workers), data.batch(0, step, 24, 1))


@given(count=st.integers(1, 30), seed=st.integers(0, 2**40), size=st.integers(1, 70), steps=st.integers(1, 10))
def test_an_epoch_has_each_example_once(count: int, seed: int, size: int, steps: int):
    drawn = np.concatenate([in_epochs(count, seed, 0, step, size) for step in range(steps)])
    for first in range(0, len(drawn), count):
        epoch = drawn[first : first + count].tolist()
        assert sorted(epoch) == list(range(count)) if len(epoch) == count else len(set(epoch)) == len(epoch)


def test_epochs_seeds_and_workers_have_different_orders():
    orders = {
        tuple(permutation(20, seed, worker, epoch)) for seed in range(3) for worker in range(3) for epoch in range(3)
    }
    assert len(orders) == 27


@pytest.mark.parametrize('choose', [in_epochs, at_random])
def test_workers_with_equal_parts_draw_different_examples(choose: Choose):
    draw = sampler(lambda workers: (np.arange(50), np.arange(50)), choose)
    drawn = np.array([np.split(draw(0, step, 20, 2).indices, 2) for step in range(10)])
    assert (drawn[:, 0] != drawn[:, 1]).mean() > 0.9


def test_windows_of_text_start_uniformly():
    counts = np.bincount(at_random(10, seed=0, stream=0, step=0, size=20_000), minlength=10)
    assert np.square(counts - 2000).sum() / 2000 < 27.9  # chi-square, 9 degrees of freedom, one in a thousand


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('size, message', [(30, 'use 24 or 32'), (3, 'use 8'), (0, 'use 8'), (-8, 'use 8')])
def test_a_batch_that_workers_do_not_divide_is_refused(dataset: Dataset, size: int, message: str):
    with pytest.raises(ValueError, match=f'a batch of {size} examples .* 8 workers: {message}'):
        dataset.load().batch(0, 0, size, 8)


@pytest.mark.parametrize('seed, step, workers', [(-1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_numbers_out_of_range_are_refused(seed: int, step: int, workers: int):
    with pytest.raises(ValueError, match='or more, not'):
        Digits().load().batch(seed, step, 8, workers)


# Divisions

divisions = st.one_of(
    st.builds(ByLabel, st.integers(1, 4)),
    st.builds(Dirichlet, st.floats(0.5, 100), st.integers(0, 1000)),
    st.just('sizes'),
)


@given(division=divisions, workers=st.integers(1, 6), labels=st.lists(st.integers(0, 4), min_size=60, max_size=90))
def test_parts_are_disjoint_and_cover(division: Division | str, workers: int, labels: list[int]):
    labels = [0, 1, *labels]
    if division == 'sizes':
        division = Sizes(tuple(range(1, workers + 1)))
    parts = division.parts(len(labels), np.array(labels), workers)
    assert len(parts) == workers
    assert min(len(part) for part in parts) > 0
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=st.integers(0, 100))
def test_the_weighted_mean_over_workers_is_that_over_all_examples(sizes: list[int], seed: int):
    workers, total = len(sizes), sum(sizes)
    parts: Parts = tuple(np.split(np.arange(total), np.cumsum(sizes)[:-1]))
    values = np.random.default_rng(seed).normal(size=total)
    each = math.lcm(*sizes)  # whole epochs of every worker
    rows, weight, _ = sampler(lambda w: parts, in_epochs)(seed, 0, each * workers, workers)
    assert (weight is None) == (len(set(sizes)) == 1)
    weight = np.ones(each * workers) if weight is None else weight
    by_worker = (weight * values[rows]).reshape(workers, each).mean(1)
    assert by_worker.mean() == pytest.approx(values.mean(), abs=1e-6)
    assert weight.mean() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('division', DIVISIONS[1:])
def test_a_worker_draws_from_its_part_only(division: Division):
    data = Digits(division=division).load()
    epoch = Digits().load().batch(0, 0, data.facts['examples'], 1)['x']
    drawn: list[set[bytes]] = [set() for _ in range(4)]
    for step in range(40):
        batch = data.batch(0, step, 80, 4)
        for worker, rows in enumerate(np.split(batch['x'], 4)):
            drawn[worker] |= {row.tobytes() for row in rows}
    assert len(set.union(*drawn)) == sum(map(len, drawn)) > 0.9 * len({row.tobytes() for row in epoch})


def test_by_label_gives_each_worker_its_labels():
    labels = np.tile(np.arange(10), 10)
    parts = ByLabel(labels_each=2).parts(100, labels, workers=5)
    assert [Counter(labels[part].tolist()) for part in parts] == [{w: 10, w + 5: 10} for w in range(5)]


def test_dirichlet_is_nearly_even_for_large_alpha_and_concentrated_for_small():
    labels = np.repeat(np.arange(5), 200)

    def shares(alpha: float, seed: int) -> np.ndarray:  # [workers, labels]
        parts = Dirichlet(alpha, seed).parts(1000, labels, workers=4)
        return np.array([np.bincount(labels[part], minlength=5) / 200 for part in parts])

    assert np.abs(shares(1e5, 0) - 0.25).max() < 0.02
    assert np.mean([shares(0.05, seed).max(0) for seed in range(20)]) > 0.85
    # of Dirichlet(1, ..., 1) over 4 workers each share has mean 1/4 and variance 3/80
    many = np.stack([shares(1.0, seed) for seed in range(200)])
    assert many.mean(0) == pytest.approx(0.25, abs=0.05)
    assert many.var() == pytest.approx(3 / 80, rel=0.1)
    assert (shares(1.0, 3) == shares(1.0, 3)).all()


def test_sizes_are_relative():
    parts = Sizes((0.5, 1, 2.5)).parts(8, None, workers=3)
    assert [part.tolist() for part in parts] == [[0], [1, 2], [3, 4, 5, 6, 7]]
    batch = Table(name='iris', division=Sizes((1, 3))).load().batch(0, 0, 4, 2)
    assert batch['weight'].tolist() == [0.5, 0.5, 1.5, 1.5]
    assert batch['weight'].dtype == np.float32


def test_with_equal_parts_there_is_no_weight():
    assert set(Table(name='iris', division=Sizes((1, 1))).load().batch(0, 0, 4, 2)) == {'x', 'y', 'row'}
    assert set(Table(name='iris').load().batch(0, 0, 6, 3)) == {'x', 'y'}


@pytest.mark.parametrize(
    'division, workers, message',
    [
        (ByLabel(), 60, r'cannot split 100 examples into 60 x labels_each=2 shards'),
        (ByLabel(0), 2, 'labels_each=0'),
        (Dirichlet(alpha=0.0), 2, 'alpha=0.0 .* above 0'),
        (Dirichlet(alpha=0.01), 90, 'a larger alpha or fewer workers'),
        (Sizes((1, 2)), 3, '2 sizes and 3 workers'),
        (Sizes((1, 0)), 2, 'above 0'),
        (Sizes((1, math.nan)), 2, 'above 0'),
        (Sizes((1, 1000)), 2, r'none of the 100 examples for workers \[0\]'),
    ],
)
def test_impossible_divisions_are_refused(division: Division, workers: int, message: str):
    with pytest.raises(ValueError, match=message):
        division.parts(100, np.arange(100) % 10, workers)


@pytest.mark.parametrize('division', [ByLabel(), Dirichlet()])
def test_divisions_by_label_need_labels(division: Division):
    with pytest.raises(ValueError, match='real numbers to predict: use Even or Sizes'):
        Table(name='diabetes', division=division).load().batch(0, 0, 4, 2)


# Held-out data


@pytest.mark.parametrize('dataset', DATASETS[1:])
def test_held_out_batches_are_in_order_and_padded_with_weight_zero(dataset: Dataset):
    data = dataset.load()
    count = data.facts['held_out']
    (whole,) = data.held_out(count)
    for size in (1, 7, count + 5):
        parts = list(data.held_out(size))
        assert {len(part[name]) for part in parts for name in part} == {size}
        joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
        assert joined['weight'].tolist() == [1.0] * count + [0.0] * (len(parts) * size - count)
        assert equal({name: values[:count] for name, values in joined.items()}, whole)
    with pytest.raises(ValueError, match='1 row or more, not 0'):
        data.held_out(0)


@pytest.mark.parametrize('name', ['digits', 'breast_cancer', 'wine', 'iris', 'diabetes'])
def test_tables_are_those_of_scikit_learn_split_and_standardised(name: str):
    data = (Digits() if name == 'digits' else Table(name=name)).load()
    raw = getattr(datasets, f'load_{name}')()
    train = data.batch(0, 0, data.facts['examples'], 1)
    (held,) = data.held_out(data.facts['held_out'])
    rows = len(raw.target)
    assert data.facts['held_out'] == round(0.2 * rows)
    x, y = (np.concatenate([train[name], held[name]]) for name in 'xy')
    assert len(x) == rows
    dims = None if name == 'digits' else 0
    np.testing.assert_allclose(train['x'].mean(dims), 0, atol=1e-5)
    np.testing.assert_allclose(train['x'].std(dims), 1, atol=1e-5)
    if name == 'diabetes':
        assert (data.task.kind, data.task.classes) == ('values', 1)
        y = y * data.facts['target_deviation'] + data.facts['target_mean']
        assert data.baseline == pytest.approx(0.5 * np.square(held['y']).mean(), rel=1e-5)
        np.testing.assert_allclose([train['y'].mean(), train['y'].std()], [0, 1], atol=1e-5)
    else:
        counts = np.bincount(train['y']) + 1
        assert data.baseline == pytest.approx(-np.log(counts[held['y']] / counts.sum()).mean(), rel=1e-6)
        assert data.task.classes == len(raw.target_names)
    np.testing.assert_allclose(np.sort(y), np.sort(raw.target), rtol=1e-5)
    actual, expected = (np.sort(table.reshape(rows, -1)[:, 2]) for table in (x, raw.data))
    assert np.corrcoef(actual, expected)[0, 1] == pytest.approx(1, abs=1e-6)


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    for dataset in (Digits(), Table()):
        with pytest.raises(ImportError, match=r"pip install 'jaxdist\[data\]'"):
            dataset.load()
