"""A damaged checkpoint is detected and set aside, and the previous one is used."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist.training.checkpoint import CheckpointError, Checkpoints, manifest


def state_at(step: int) -> dict[str, jax.Array]:
    noise = np.random.default_rng(step).normal(size=(50, 20)).astype('float32')
    return {'w': jnp.asarray(noise), 'step': jnp.int32(step), 'key': jax.random.key(step)}


def as_bytes(state: Any) -> list[bytes]:
    leaves = jax.tree.leaves(state)
    return [np.asarray(jax.random.key_data(x) if manifest.is_key(x) else x).tobytes() for x in leaves]


TARGET = state_at(0)


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('saved')
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_at(step), {'step': step})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / 'run')


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / '2').rglob('*') if path.is_file())


def damages() -> list[Callable[[Path], object]]:
    """Functions that damage a file."""
    rng = random.Random(0)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)

    def truncate(path: Path) -> None:
        os.truncate(path, rng.randrange(path.stat().st_size))

    def empty(path: Path) -> None:
        os.truncate(path, 0)

    return [*[flip] * 4, truncate, empty, Path.unlink]


@pytest.mark.parametrize('damage', damages(), ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_detected(saved: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    detected = 0
    for n, path in enumerate(files_of(saved)):
        folder = shutil.copytree(saved, tmp_path / str(n))
        damage(folder / path.relative_to(saved))
        restored = Checkpoints(folder).restore(TARGET)
        assert restored is not None
        assert as_bytes(restored.state) == as_bytes(state_at(restored.step))
        assert restored.meta == {'step': restored.step}
        if path.parent.name == '2' and path.name != manifest.FILE:
            continue  # Orbax's records of times and handlers, which loading does not read
        detected += 1
        assert restored.step == 1
        assert [aside for aside, _ in restored.damaged] == [folder / 'damaged-2-0']
        assert path.name in restored.damaged[0][1] or 'the manifest' in restored.damaged[0][1]
        assert sorted(entry.name for entry in folder.iterdir()) == ['1', 'damaged-2-0']
    assert detected >= 8


def test_a_missing_manifest_is_damage(folder: Path) -> None:
    (folder / '2' / manifest.FILE).unlink()
    assert Checkpoints(folder).meta() == {'step': 1}
    restored = Checkpoints(folder).restore(TARGET)
    assert restored is not None
    assert (restored.step, restored.damaged) == (1, [(folder / 'damaged-2-0', 'the manifest is missing')])


def test_data_that_was_wrong_when_written_is_damage(folder: Path) -> None:
    """The files are intact, but their data is not that of the device: only the leaves' digests detect it."""
    described = json.loads((folder / '2' / manifest.FILE).read_text())
    shutil.rmtree(folder / '2' / manifest.ARRAYS)
    shutil.copytree(folder / '1' / manifest.ARRAYS, folder / '2' / manifest.ARRAYS)
    manifest.write(folder / '2', {name: described[name] for name in ('format', 'step', 'meta', 'leaves')})
    restored = Checkpoints(folder).restore(TARGET)
    assert restored is not None
    assert restored.step == 1
    wrong = "state['key'], state['step'], state['w']"
    assert restored.damaged[0][1] == f'the data differs from what was saved, in {wrong}'


def test_when_all_are_damaged_training_does_not_restart(folder: Path) -> None:
    (folder / '2' / manifest.FILE).write_text('{}')
    next((folder / '1' / manifest.ARRAYS).rglob('manifest.ocdbt')).unlink()
    with pytest.raises(CheckpointError, match='no checkpoint can be read'):
        Checkpoints(folder).meta(2)
    with pytest.raises(CheckpointError) as first:
        Checkpoints(folder).restore(TARGET)
    assert 'damaged-2-0: the manifest was altered' in str(first.value)
    assert 'damaged-1-0: arrays/' in str(first.value)
    with pytest.raises(CheckpointError, match='damaged-1-0: set aside earlier; damaged-2-0: set aside earlier'):
        Checkpoints(folder).restore(TARGET)


def test_the_same_step_may_be_damaged_twice(folder: Path) -> None:
    for n in (0, 1):
        (folder / '2' / manifest.FILE).unlink()
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(TARGET)
            assert restored is not None
            assert restored.damaged[0][0] == folder / f'damaged-2-{n}'
            checkpoints.save(2, state_at(2), {})
    assert Checkpoints(folder).steps() == [1, 2]


def test_another_format_is_not_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, 'FORMAT', 99)
    with pytest.raises(CheckpointError, match='has format 1; this program reads format 99'):
        Checkpoints(folder).restore(TARGET)
    assert Checkpoints(folder).steps() == [1, 2]
