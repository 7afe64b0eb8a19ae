"""Text: read in order, split into windows that do not mix training and held-out bytes, divided among workers."""

import hashlib
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdist.data import ByLabel, Data, Dirichlet, Division, Sizes, Text, text


def texts(tmp_path: Path, content: bytes, **settings: Any) -> Data:
    path = tmp_path / 'text'
    path.write_bytes(content)
    return Text(path=str(path), **settings).load()


def write_library(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(content)


def test_held_out_text_is_never_trained_on(tmp_path: Path):
    data = texts(tmp_path, b'a' * 900 + b'b' * 100, context=10, held_out=0.1)
    tokens = np.concatenate([data.batch(0, step, 64, 2)['tokens'] for step in range(50)])
    assert set(np.unique(tokens)) == {ord('a')}
    held = list(data.held_out(4))
    assert set(np.unique(np.concatenate([part['tokens'] for part in held]))) == {ord('b')}
    assert sum(part['weight'].sum() for part in held) == 9
    assert data.baseline == pytest.approx(-np.log(1 / (900 + 256)))


def test_held_out_windows_predict_every_byte_once_in_order(tmp_path: Path):
    content = bytes(range(200)) * 3
    data = texts(tmp_path, content, context=7, held_out=0.25)
    tokens = np.concatenate([part['tokens'][part['weight'] > 0] for part in data.held_out(4)])
    assert bytes(tokens[:, 1:].ravel().tolist()) == content[451 : 451 + 21 * 7]
    assert (tokens[1:, 0] == tokens[:-1, -1]).all()


def test_training_windows_are_in_the_text_and_reach_its_ends(tmp_path: Path):
    content = bytes(range(250))
    data = texts(tmp_path, content, context=8, held_out=0.2)
    tokens = np.concatenate([data.batch(0, step, 64, 1)['tokens'] for step in range(40)])
    assert tokens.dtype == np.int32
    assert (np.diff(tokens, axis=1) == 1).all()
    assert (tokens.min(), tokens.max()) == (0, 24 * 8 - 1 + 8)


@pytest.mark.parametrize(
    'division, parts',
    [(ByLabel(1), 'abcd'), (ByLabel(2), ('ae', 'bf', 'cg', 'dh')), (Sizes((1, 1, 1, 1)), 'abcd')],
)
def test_workers_have_parts_of_a_single_text(tmp_path: Path, division: Division, parts: str | tuple[str, ...]):
    pieces = sorted(''.join(parts))
    content = b''.join(letter.encode() * (808 // len(pieces)) for letter in pieces) + b'z' * 100
    data = texts(tmp_path, content, context=1, held_out=100 / 908, division=division)
    batches = [data.batch(0, step, 40, 4)['tokens'][:, 0].reshape(4, 10) for step in range(30)]
    for worker, letters in enumerate(parts):
        starts = Counter(bytes(np.concatenate([b[worker] for b in batches]).tolist()).decode())
        assert sum(starts[letter] for letter in letters) > 290  # shards end at blocks, up to two bytes off
        assert all(starts[letter] > 60 for letter in letters)


def test_labels_of_text_are_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_library(tmp_path, {f'{letter}.py': letter.encode() * 100 for letter in 'abcdef'})
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
    data = Text(context=1, held_out=1 / 3, division=Dirichlet(alpha=1e-3)).load()
    rows = np.concatenate([data.batch(0, step, 64, 2)['tokens'][:, 0].reshape(2, 32) for step in range(20)], axis=1)
    mixes = [Counter(bytes(row.tolist()).decode()) for row in rows]
    assert set(mixes[0]) | set(mixes[1]) == set('abcd')
    assert not set(mixes[0]) & set(mixes[1])  # with such a small alpha each file belongs to one worker
    with pytest.raises(ValueError, match='at least two labels'):
        texts(tmp_path, b'one file ' * 99, context=2, division=Dirichlet()).batch(0, 0, 4, 2)


def test_the_standard_library_is_read_by_path_without_tests_and_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = {'b.py': b'B' * 50, 'a/z.py': b'Z' * 30, 'a.py': b'A' * 40}
    ignored = ['test/x.py', 'a/tests/x.py', 'site-packages/p/x.py', 'tkinter/x.py', '_sysconfigdata_x.py', 'x.txt']
    write_library(tmp_path, {**read, **dict.fromkeys(ignored, b'!' * 99)})
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
    facts = Text(context=1).load().facts
    whole = b'A' * 40 + b'Z' * 30 + b'B' * 50
    assert (facts['files'], facts['bytes']) == (3, 120)
    assert facts['sha256'] == hashlib.sha256(whole).hexdigest()
    assert sys.version.split()[0] in facts['name']
    monkeypatch.setattr(text, 'LIMIT', 75)
    assert Text(context=1).load().facts['sha256'] == hashlib.sha256(whole[:75]).hexdigest()
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path / 'nowhere'))
    with pytest.raises(FileNotFoundError, match='no sources of its standard library'):
        Text().load()


def test_this_standard_library_is_large_enough_to_learn_from():
    data = Text(context=64).load()
    assert 3e6 < data.facts['bytes'] <= 8e6
    assert 2.5 < data.baseline < 3.5


@pytest.mark.parametrize(
    'content, settings, message',
    [
        (b'', {}, 'is empty'),
        (b'x' * 100, {}, r'100 bytes, too few for context=128 with held_out=0.05: it needs about 2580'),
        (b'x' * 100, {'context': 0}, 'context=0 must be 1 byte or more'),
        (b'x' * 100, {'held_out': 0.0}, 'fraction between 0 and 1'),
        (b'x', {'context': 1}, '1 bytes .* cannot be split'),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, content: bytes, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        texts(tmp_path, content, **settings)


def test_a_missing_text_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no text file 'nowhere\.txt'"):
        Text(path='nowhere.txt').load()
    with pytest.raises(ValueError, match='is a folder'):
        Text(path=str(tmp_path)).load()
