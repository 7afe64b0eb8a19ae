"""Images from idx files: intact files are read, damaged ones refused with a reason."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxdist.data import FashionMNIST, images
from jaxdist.data.images import read_idx

RNG = np.random.default_rng(0)
FILES = {
    'train-images-idx3-ubyte': RNG.integers(0, 256, (30, 5, 4), dtype=np.uint8),
    'train-labels-idx1-ubyte': RNG.integers(0, 10, 30, dtype=np.uint8),
    't10k-images-idx3-ubyte': RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8),
    't10k-labels-idx1-ubyte': RNG.integers(0, 10, 7, dtype=np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f'>4B{array.ndim}I', 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, **changed: np.ndarray) -> str:
    """Writes a folder of idx files, with compressed images; `changed` replaces arrays, named as in train_images."""
    for name, array in FILES.items():
        content = idx(changed.get('_'.join(name.split('-')[:2]), array))
        compress = 'images' in name
        path = folder / (f'{name}.gz' if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)
    return str(folder)


def test_images_are_read_standardised_and_labelled(tmp_path: Path):
    data = FashionMNIST(path=write(tmp_path)).load()
    assert data.task == ('classes', (5, 4, 1), 10)
    train, raw = data.batch(0, 0, 30, 3), FILES['train-images-idx3-ubyte']
    (held,) = data.held_out(7)
    order = np.argsort(train['y'], kind='stable')
    assert train['y'][order].tolist() == sorted(FILES['train-labels-idx1-ubyte'].tolist())
    expected = (FILES['t10k-images-idx3-ubyte'][..., None] - raw.mean()) / raw.std()
    np.testing.assert_allclose(held['x'], expected, rtol=1e-5)
    assert held['y'].tolist() == FILES['t10k-labels-idx1-ubyte'].tolist()
    pixels = np.rint(train['x'][..., 0] * raw.std() + raw.mean()).astype(np.uint8)
    labelled = zip(pixels, train['y'], strict=True)
    expected = zip(raw, FILES['train-labels-idx1-ubyte'], strict=True)
    assert {(p.tobytes(), int(y)) for p, y in labelled} == {(p.tobytes(), int(y)) for p, y in expected}
    assert (data.facts['examples'], data.facts['held_out']) == (30, 7)


def test_for_missing_files_the_message_names_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, 'DEBIAN', tmp_path)
    with pytest.raises(FileNotFoundError, match='apt install dataset-fashion-mnist') as caught:
        FashionMNIST().load()
    assert str(tmp_path) in str(caught.value)
    write(tmp_path)
    assert FashionMNIST().load().facts['examples'] == 30


def test_compressed_and_uncompressed_files_are_read_alike(tmp_path: Path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / 'a').write_bytes(idx(array))
    (tmp_path / 'a.gz').write_bytes(gzip.compress(idx(array)))
    for name in ('a', 'a.gz'):
        np.testing.assert_array_equal(read_idx(tmp_path / name), array)


GOOD = idx(np.arange(200, dtype=np.uint8))


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('a', GOOD[:-1], '207 bytes, and its header gives 208'),
        ('a', GOOD + b'x', '209 bytes, and its header gives 208'),
        ('a', GOOD[:6], '6 bytes, and its header gives 8'),
        ('a', b'', "begins with ''"),
        ('a', b'PNG' + GOOD, "begins with '504e4700'"),
        ('a', b'\0\0\x0d\1' + GOOD[4:], "begins with '00000d01', not 000008"),
        ('a.gz', gzip.compress(GOOD)[:-20], 'truncated or damaged'),
        ('a.gz', GOOD, 'cannot be unpacked'),
        ('a.gz', b'', 'begins with'),
    ],
)
def test_damaged_files_are_refused_with_a_reason(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_flipped_bit_in_a_compressed_file_is_detected(tmp_path: Path):
    packed = bytearray(gzip.compress(GOOD))
    packed[len(packed) // 2] ^= 4
    (tmp_path / 'a.gz').write_bytes(packed)
    with pytest.raises(ValueError, match='truncated or damaged'):
        read_idx(tmp_path / 'a.gz')


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'train_labels': np.zeros(29, np.uint8)}, r'train has images \(30, 5, 4\) and labels \(29,\)'),
        ({'t10k_images': np.zeros((7, 20), np.uint8)}, r't10k has images \(7, 20\)'),
        ({'t10k_images': np.zeros((7, 4, 5), np.uint8)}, r'training images are \(5, 4, 1\), held-out ones \(4, 5, 1\)'),
        ({'train_labels': np.full(30, 10, np.uint8)}, 'the label 10, and labels must be below 10'),
    ],
)
def test_inconsistent_files_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], message: str):
    with pytest.raises(ValueError, match=message):
        FashionMNIST(path=write(tmp_path, **changed)).load()
