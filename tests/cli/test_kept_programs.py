"""The compilation cache of the command line: its folder, its upkeep, and a run that compiles nothing twice."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from run_fixtures import CONFIG, Jaxdist, losses
from subprogram import PATIENCE, start

from jaxdist.cli.compilation_cache import DAYS, compression, default_folder, keep_programs, processor, tidy

NAMES = [
    'jax_enable_compilation_cache',
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_enable_xla_caches',
]
CURRENT = f'jax-{jax.__version__}-{compression().__name__}-{processor()}'


def settings() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in NAMES}


@pytest.fixture(autouse=True)
def unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX's settings as a user finds them; afterwards those of the tests."""
    before = settings()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    jax.config.update('jax_compilation_cache_dir', None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_by_default_programs_are_kept_in_the_users_cache(tmp_path: Path) -> None:
    folder = tmp_path / 'cache' / 'jaxdist' / 'compiled' / CURRENT
    assert keep_programs() == f'compiled programs are kept in {folder}'
    assert list(settings().values()) == [True, str(folder), 0.0, 'none']
    jax.block_until_ready(jax.jit(lambda x: x * 17 - 4)(3.0))
    assert len(list(folder.glob('*-cache'))) >= 1


def test_without_an_xdg_folder_the_cache_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr('sys.platform', 'linux')
    assert default_folder() == tmp_path / '.cache' / 'jaxdist' / 'compiled'
    assert keep_programs() == f'compiled programs are kept in ~/.cache/jaxdist/compiled/{CURRENT}'
    monkeypatch.setattr('sys.platform', 'darwin')
    assert default_folder() == tmp_path / 'Library' / 'Caches' / 'jaxdist' / 'compiled'


def test_a_folder_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert keep_programs('mine') == f'compiled programs are kept in {tmp_path / "mine" / CURRENT}'
    assert not (tmp_path / 'cache').exists()


def test_a_chosen_folder_comes_before_settings_of_jax(tmp_path: Path) -> None:
    jax.config.update('jax_enable_compilation_cache', False)
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'other'))
    keep_programs(str(tmp_path))
    assert list(settings().values())[:2] == [True, str(tmp_path / CURRENT)]


@pytest.mark.parametrize(('enabled', 'folder'), [(True, 'theirs'), (False, None)])
def test_settings_of_jax_come_before_the_default(tmp_path: Path, enabled: bool, folder: str | None) -> None:
    jax.config.update('jax_enable_compilation_cache', enabled)
    jax.config.update('jax_compilation_cache_dir', folder)
    before = settings()
    assert keep_programs() == ''
    assert settings() == before
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('none', ['none', 'None'])
def test_the_cache_is_turned_off(tmp_path: Path, none: str) -> None:
    keep_programs(str(tmp_path))
    assert keep_programs(none) == ''
    jax.block_until_ready(jax.jit(lambda x: x * 17 - 5)(3.0))
    assert list((tmp_path / CURRENT).iterdir()) == []


def test_several_processes_keep_programs_in_a_chosen_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    assert keep_programs() == ''
    assert str(tmp_path) in keep_programs(str(tmp_path))


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    (tmp_path / 'file').write_text('')
    lines = {keep_programs(str(tmp_path / 'file'))}
    assert lines == {f'compiled programs are not kept in {tmp_path / "file"}: Not a directory'}
    monkeypatch.setattr('tempfile.TemporaryFile', lambda dir: (_ for _ in ()).throw(OSError(28, 'No space left')))
    assert keep_programs().endswith('/cache/jaxdist/compiled: No space left')
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr('os.path.expanduser', lambda path: path)
    assert keep_programs() == 'compiled programs are not kept: Could not determine home directory.'
    assert settings() == before


def test_incomplete_and_old_entries_are_removed(tmp_path: Path) -> None:
    whole = compression().compress(bytes(range(256)) * 9)
    entries = {name: tmp_path / f'{name}-cache' for name in ('whole', 'half', 'empty', 'old', 'verified')}
    for name, entry in entries.items():
        entry.write_bytes({'half': whole[: len(whole) // 2], 'empty': b''}.get(name, whole))
    (tmp_path / 'another file').write_text('')
    long_ago = time.time() - (DAYS + 1) * 86400
    os.utime(entries['old'], (long_ago, long_ago))
    os.utime(entries['verified'], (time.time(), long_ago))  # used just now
    entries['verified'].chmod(0o444)
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['another file', 'verified-cache', 'whole-cache']
    assert entries['whole'].stat().st_mode & 0o777 == 0o444
    entries['whole'].chmod(0o644)
    entries['whole'].write_bytes(b'')
    entries['whole'].chmod(0o444)  # verified entries are not read again
    tidy(tmp_path)
    assert entries['whole'].exists()


def test_a_plan_names_the_folder_unless_it_is_json(jaxdist: Jaxdist, tmp_path: Path) -> None:
    line = f'compiled programs are kept in {tmp_path / "mine" / CURRENT}'
    assert jaxdist('plan', 'small.py', '--compilation-cache', 'mine').out.endswith(f'{line}\n')
    assert line not in jaxdist('plan', 'small.py', '--json', '--compilation-cache', 'mine').out
    assert list((tmp_path / 'mine' / CURRENT).glob('jit_packed_step-*-cache'))


@pytest.mark.slow
def test_a_second_run_compiles_what_is_missing(tmp_path: Path) -> None:
    def train(*words: str) -> tuple[str, int]:
        """The first line of a run, and the number of programs that it compiled."""
        env = {
            'JAX_ENABLE_COMPILATION_CACHE': 'true',
            'JAX_EXPLAIN_CACHE_MISSES': 'true',
            'JAX_COMPILATION_CACHE_DIR': '',
        }
        process = start(tmp_path, 'train', 'small.py', '--emulate', *words, config=CONFIG, **env)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        return out.splitlines()[0], err.count('PERSISTENT COMPILATION CACHE MISS')

    folder = tmp_path / 'cache' / 'jaxdist' / 'compiled' / CURRENT
    line, compiled = train()
    assert line == f'compiled programs are kept in {folder}'
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    assert compiled == len(entries) > 3

    entries[-1].write_bytes(entries[-1].read_bytes()[:-9])  # as after a kill
    assert train() == (line, 1)
    assert sorted(folder.iterdir()) == sorted(entries)
    (tmp_path / 'file').write_text('')
    line = f'compiled programs are not kept in {tmp_path}/file: Not a directory'
    assert train('--compilation-cache', 'file') == (line, compiled)
    first, *others = (losses(tmp_path / 'runs' / f'small-{number}') for number in (1, 2, 3))
    assert others == [first, first]
