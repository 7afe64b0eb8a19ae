"""Checkpoints under faults: kills, full disks, unwritable folders, a second process; two processes of one run."""

import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import launch

from jaxdist.training.checkpoint import CheckpointError, Checkpoints, InUseError, lock

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
from jaxdist.training.checkpoint import Checkpoints, manifest

die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    for step in (1, 2, 3):
        if step == 3 and sys.argv[2] == 'before the manifest':
            checkpoints.wait()
            manifest.write = die
        checkpoints.save(step, jnp.full(1000, step), {})
        if step == 3 and sys.argv[2] == 'while writing':
            die()
"""


@pytest.mark.parametrize('when', ['while writing', 'before the manifest'])
def test_a_kill_costs_at_most_the_step_being_written(tmp_path: Path, when: str) -> None:
    process = launch(KILLED, str(tmp_path), when, cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert (tmp_path / '2').is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        assert [path.name for path in tmp_path.iterdir() if not path.name.isdecimal()] == []
        restored = checkpoints.restore(jnp.zeros(1000, 'int32'))
        assert restored is not None
        assert restored.step in ((2, 3) if when == 'while writing' else (2,))
        np.testing.assert_array_equal(restored.state, restored.step)
        checkpoints.save(4, jnp.full(1000, 4), {})
    assert 4 in checkpoints.steps()


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: writes fail as on a full disk, with another error number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def big(step: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(step).integers(0, 2**32, 300_000, 'uint32'))


def test_a_full_disk_is_reported_once_and_training_can_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, big(1), {})
        checkpoints.wait()
        with full_disk(100_000):
            checkpoints.save(2, big(2), {})
            with pytest.raises(CheckpointError, match=rf'^step 2 was not saved in {tmp_path}: File too large$'):
                checkpoints.save(3, big(3), {})
            checkpoints.save(4, big(4), {})
            with pytest.raises(CheckpointError, match=r'^step 4 was not saved in '):
                checkpoints.wait()
            checkpoints.wait()
        assert [path.name for path in tmp_path.iterdir()] == ['1']
        checkpoints.save(5, big(5), {})
    assert checkpoints.steps() == [1, 5]
    assert capfd.readouterr().err == ''


def save_on_a_full_disk(folder: Path, then: Exception | None) -> None:
    with full_disk(100_000), Checkpoints(folder) as checkpoints:
        checkpoints.save(1, big(1), {})
        if then is not None:
            raise then


def test_a_failure_of_the_last_save_is_raised_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='step 1 was not saved'):
        save_on_a_full_disk(tmp_path, None)


def test_a_failure_of_the_last_save_does_not_hide_the_first_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        save_on_a_full_disk(tmp_path, ZeroDivisionError())
    assert 'step 1 was not saved' in caught.value.__notes__[0]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match=r'cannot make the folder .*file/run: NotADirectoryError'):
        Checkpoints(tmp_path / 'file' / 'run').__enter__()
    with pytest.raises(CheckpointError, match=r'cannot write in the folder .*file/run: NotADirectoryError'):
        lock(tmp_path / 'file' / 'run').__enter__()


def test_a_folder_that_is_removed(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / 'run') as checkpoints:
        (tmp_path / 'run').rmdir()
        (tmp_path / 'run').write_text('')
        with pytest.raises(CheckpointError, match=r'step 1 was not saved in .*run: '):
            checkpoints.save(1, jnp.zeros(3), {})


LOCKING = """
import sys, time
from pathlib import Path
from jaxdist.training.checkpoint import lock

with lock(Path(sys.argv[1])):
    print('locked', flush=True)
    time.sleep(600)
"""


def test_one_process_can_lock_a_folder_and_a_killed_one_unlocks_it(tmp_path: Path) -> None:
    process = launch(LOCKING, str(tmp_path), cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == 'locked\n'
    with pytest.raises(InUseError, match=f'{tmp_path} is in use by process {process.pid}'), lock(tmp_path):
        pass
    process.kill()
    process.communicate()
    with lock(tmp_path):
        assert (tmp_path / 'lock').read_text().startswith(f'process {os.getpid()} on ')
    with lock(tmp_path):
        pass


WORKER = """
import sys
from pathlib import Path
import jax
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[3]))
import jax.numpy as jnp, numpy as np
from jaxdist.training.checkpoint import Checkpoints, manifest
from jaxdist.training.checkpoint.errors import DamageError
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('workers',))
split, same = (jax.NamedSharding(mesh, spec) for spec in (jax.P('workers'), jax.P()))
make = jax.jit(lambda n: {'w': n + jnp.arange(8.0), 'key': jax.random.key(n), 'empty': jnp.zeros((4, 0))},
               out_shardings={'w': split, 'key': same, 'empty': split})
folder = Path(sys.argv[1])
with Checkpoints(folder, keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, make(step), {'step': step})
    checkpoints.wait()
    if jax.process_index() == 0:
        (folder / '3' / 'manifest.json').unlink()
    restored = checkpoints.restore(make(0))
    mine = np.concatenate([shard.data for shard in restored.state['w'].addressable_shards]).tolist()
    print(restored.step, restored.meta, mine, [(path.name, reason) for path, reason in restored.damaged])
    checkpoints.save(5, make(5), {'step': 5})
    checkpoints.wait()
    read = manifest.read
    def read_badly(folder, step):
        if step == 5:
            raise DamageError('seen by one')
        return read(folder, step)
    if jax.process_index() == 1:
        manifest.read = read_badly
    restored = checkpoints.restore(make(0))
    print(restored.step, restored.damaged[0][1])
"""


def test_two_processes_save_and_restore_as_one(tmp_path: Path) -> None:
    with socket.create_server(('localhost', 0)) as server:
        port = server.getsockname()[1]
    processes = [launch(WORKER, str(tmp_path), str(port), str(index), cwd=tmp_path) for index in range(2)]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    damaged = "[('damaged-3-0', 'the manifest is missing')]"
    lines = [output.splitlines()[-2:] for output, _ in outputs]  # Gloo prints before
    assert lines[0][0] == f"2 {{'step': 2}} [2.0, 3.0, 4.0, 5.0] {damaged}"
    assert lines[1][0] == f"2 {{'step': 2}} [6.0, 7.0, 8.0, 9.0] {damaged}"
    assert [line[1] for line in lines] == ['2 process 1 could not read it', '2 seen by one']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['2', 'damaged-3-0', 'damaged-5-0']
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('workers',))
    sharding = jax.NamedSharding(mesh, jax.P('workers'))
    state = {'w': jax.device_put(jnp.zeros(8), sharding), 'key': jax.random.key(0), 'empty': jnp.zeros((4, 0))}
    restored = Checkpoints(tmp_path).restore(state)
    assert restored is not None
    np.testing.assert_array_equal(restored.state['w'], 2 + np.arange(8.0))
    assert jax.random.key_data(restored.state['key']).tolist() == [0, 2]
