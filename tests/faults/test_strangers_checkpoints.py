"""The lock and the checkpoints of a folder that a stranger made: nothing outside of it is changed or removed."""

import os
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxdist.training.checkpoint import CheckpointError, Checkpoints, lock

STATE = {'w': jnp.arange(3.0)}


def save(folder: Path, *steps: int, keep: int = 3) -> None:
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, STATE, {'step': step})


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with files of the user's, some in folders named by digits."""
    for name in ('1', '2', '3.orbax-checkpoint-tmp', 'notes'):
        (tmp_path / 'foreign' / name).mkdir(parents=True)
        (tmp_path / 'foreign' / name / 'kept').write_text('mine')
    return tmp_path / 'foreign'


def kept(foreign: Path) -> bool:
    return len(list(foreign.glob('*/kept'))) == 4


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / 'bashrc').write_text('mine')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'lock').symlink_to(tmp_path / 'bashrc')
    with pytest.raises(CheckpointError, match='run/lock is a symbolic link'), lock(tmp_path / 'run'):
        pass
    assert (tmp_path / 'bashrc').read_text() == 'mine'
    (tmp_path / 'bashrc').unlink()
    with pytest.raises(CheckpointError, match='run/lock is a symbolic link'), lock(tmp_path / 'run'):
        pass
    assert not (tmp_path / 'bashrc').exists()


@pytest.mark.parametrize('make', [Path.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, make: object) -> None:
    make(tmp_path / 'lock')  # type: ignore[operator]
    with pytest.raises(CheckpointError, match='lock is no regular file'), lock(tmp_path):
        pass


def test_a_folder_of_checkpoints_that_is_a_link_is_refused(tmp_path: Path, foreign: Path) -> None:
    save(foreign, 4)
    (tmp_path / 'checkpoints').symlink_to(foreign)
    linked = Checkpoints(tmp_path / 'checkpoints')
    for use in (linked.__enter__, linked.meta, linked.steps, lambda: linked.restore(STATE)):
        with pytest.raises(CheckpointError, match='checkpoints is a symbolic link'):
            use()


@pytest.mark.parametrize('name', ['7', '7.orbax-checkpoint-tmp'])
def test_a_checkpoint_that_is_a_link_is_refused(tmp_path: Path, foreign: Path, name: str) -> None:
    save(tmp_path / 'checkpoints', 4)
    (tmp_path / 'checkpoints' / name).symlink_to(foreign)
    with pytest.raises(CheckpointError, match=f'checkpoints/{name} is a symbolic link'):
        save(tmp_path / 'checkpoints', 8)
    assert kept(foreign)


def test_folders_without_a_manifest_are_never_removed(tmp_path: Path) -> None:
    folder = tmp_path / 'checkpoints'
    for name in ('1', '2', 'my.orbax-checkpoint-tmp', '03'):
        (folder / name).mkdir(parents=True)
        (folder / name / 'kept').write_text('mine')
    (folder / '5.orbax-checkpoint-tmp').mkdir()
    save(folder, 10, 20, 30, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == ['03', '1', '2', '30', 'my.orbax-checkpoint-tmp']
    assert len(list(folder.glob('*/kept'))) == 4


def test_a_manifest_of_another_step_is_no_reason_to_remove_a_folder(tmp_path: Path) -> None:
    save(tmp_path, 4)
    (tmp_path / '4').rename(tmp_path / '3')
    save(tmp_path, 5, 6, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['3', '6']


def test_a_damaged_checkpoint_is_not_set_aside_onto_a_link(tmp_path: Path, foreign: Path) -> None:
    save(tmp_path / 'checkpoints', 4)
    (tmp_path / 'checkpoints' / '5').mkdir()
    (tmp_path / 'checkpoints' / 'damaged-5-0').symlink_to(tmp_path / 'nowhere')
    restored = Checkpoints(tmp_path / 'checkpoints').restore(STATE)
    assert restored is not None
    assert restored.damaged[0][0].name == 'damaged-5-1'
    assert kept(foreign)
