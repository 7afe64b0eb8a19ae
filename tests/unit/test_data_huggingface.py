"""Data sets in folders of Hugging Face's library."""

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from jaxdist.core.errors import MissingExtraError
from jaxdist.data import ByLabel, HuggingFace, HuggingFaceText, Text, from_arrays

RNG = np.random.default_rng(0)
PIXELS, LABELS = RNG.integers(0, 256, (20, 4, 5), np.uint8), np.arange(20) % 3


@pytest.fixture(autouse=True)
def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache is in the test's folder, and it draws no bars."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    datasets.disable_progress_bars()


def table(**columns: Any) -> Any:
    return datasets.Dataset.from_dict({name: np.asarray(x).tolist() for name, x in columns.items()})


def test_columns_are_the_arrays(tmp_path: Path) -> None:
    folder = str(tmp_path / 'saved')
    table(a=PIXELS[:, 0, 0], b=PIXELS[:, :, 1], label=LABELS).save_to_disk(folder)
    data = HuggingFace(folder, x=('b', 'a'), division=ByLabel(1), standardise=True).load()
    x = np.concatenate([PIXELS[:, :, 1], PIXELS[:, :1, 0]], axis=1).astype(np.int64)
    same = from_arrays(x, LABELS, division=ByLabel(1), standardise=True)
    assert data.task == same.task
    assert {**data.facts, 'name': ''} == {**same.facts, 'name': ''}
    for actual, expected in zip(data.held_out(4), same.held_out(4), strict=True):
        for name in expected:
            np.testing.assert_array_equal(actual[name], expected[name])
    np.testing.assert_array_equal(data.batch(0, 3, 8, 4)['x'], same.batch(0, 3, 8, 4)['x'])
    assert HuggingFace(folder, x=('a',)).load().task.shape == (1,)
    assert HuggingFace(folder, x=('b',), y='a').load().task.classes > 3


def test_splits_and_values(tmp_path: Path) -> None:
    folder = str(tmp_path / 'saved')
    rows = table(x=PIXELS[:, 0], y=LABELS / 2)
    datasets.DatasetDict({'train': rows.select(range(15)), 'test': rows.select(range(15, 20))}).save_to_disk(folder)
    data = HuggingFace(folder, x=('x',), y='y', held_out_split='test').load()
    assert (data.task.kind, data.facts['examples'], data.facts['held_out']) == ('values', 15, 5)
    np.testing.assert_array_equal(next(data.held_out(5))['x'], PIXELS[15:, 0])


@pytest.mark.parametrize('colours', [False, True])
def test_images_are_scaled(colours: bool, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.stack([PIXELS] * 3, -1) if colours else PIXELS
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.Value('int64')})
    columns = {'image': [Image.fromarray(each) for each in pixels], 'label': LABELS.tolist()}
    datasets.Dataset.from_dict(columns, features).save_to_disk(str(tmp_path / 'saved'))
    data = HuggingFace(str(tmp_path / 'saved')).load()
    assert data.task.shape == (4, 5, 3 if colours else 1)
    every = np.concatenate([data.batch(0, 0, 16, 1)['x'], next(data.held_out(4))['x']])
    expected = pixels.reshape(20, 4, 5, -1).astype(np.float32) / 255
    assert {x.tobytes() for x in every} == {x.tobytes() for x in expected}


@pytest.mark.parametrize('form', ['parquet', 'csv', 'json'])
def test_folders_of_files(form: str, tmp_path: Path) -> None:
    folder = tmp_path / 'files'
    folder.mkdir()
    getattr(table(a=LABELS, label=LABELS), f'to_{form}')(folder / f'train.{form}')
    data = HuggingFace(str(folder), x=('a',)).load()
    assert (data.facts['examples'], data.facts['held_out']) == (16, 4)


def test_text_is_that_of_a_file(tmp_path: Path) -> None:
    lines = [f'line {n}, and a little more' for n in range(50)]
    table(text=lines).save_to_disk(str(tmp_path / 'saved'))
    (tmp_path / 'lines.txt').write_text(''.join(f'{line}\n' for line in lines))
    data = HuggingFaceText(str(tmp_path / 'saved'), context=16, held_out=0.2).load()
    same = Text(str(tmp_path / 'lines.txt'), context=16, held_out=0.2).load()
    assert (data.facts['sha256'], data.facts['files']) == (same.facts['sha256'], 50)
    np.testing.assert_array_equal(data.batch(0, 2, 4, 2)['tokens'], same.batch(0, 2, 4, 2)['tokens'])


@pytest.mark.parametrize(
    'settings, problem',
    [
        ({'x': ('a',), 'split': 'test'}, r"has no split 'test'; it has train"),
        ({'x': ('zz',)}, r"has no column 'zz'. It has a, ragged, word, gap, label"),
        ({'x': ('a',), 'y': 'lable'}, "has no column 'lable': did you mean 'label'"),
        ({'x': ()}, 'x must name a column: .* has a, ragged'),
        ({'x': ('ragged',)}, r"column 'ragged' of .* has entries of 2 shapes, such as \(1,\) and \(2,\)"),
        ({'x': ('word',)}, r"column 'word' of .* is text: make labels of it with `class_encode_column\('word'\)`"),
        ({'x': ('gap',)}, "column 'gap' of .* has 1 missing entries"),
    ],
)
def test_columns_that_cannot_be_used_are_named(settings: Any, problem: str, tmp_path: Path) -> None:
    columns = {'a': [1, 2], 'ragged': [[1], [1, 2]], 'word': ['a', 'b'], 'gap': [1, None], 'label': [0, 1]}
    datasets.DatasetDict({'train': datasets.Dataset.from_dict(columns)}).save_to_disk(str(tmp_path / 'saved'))
    with pytest.raises(ValueError, match=problem):
        HuggingFace(str(tmp_path / 'saved'), **settings).load()


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    table(text=[1, 2]).save_to_disk(str(tmp_path / 'saved'))
    with pytest.raises(ValueError, match=r"column 'text' of .* must be text, and has entries such as 1"):
        HuggingFaceText(str(tmp_path / 'saved')).load()


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty cannot be read as a data set'):
        HuggingFace(str(tmp_path / 'empty')).load()


def test_the_library_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jaxdist\[huggingface\]'"):
        HuggingFace('.').load()
