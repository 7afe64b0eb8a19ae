"""What tests of runs and of the command line share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from run_fixtures import CONFIG, Ended, Jaxdist

from jaxdist.cli import main as cli


@pytest.fixture
def jaxdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Jaxdist:
    """The program, called in an empty folder but for a config `small.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '100')
    monkeypatch.delenv('JAXDIST_TRAIN', raising=False)
    Path('small.py').write_text(CONFIG)

    def call(*words: str) -> Ended:
        monkeypatch.setattr(sys, 'argv', ['jaxdist', *words])
        try:
            cli.main()
        except SystemExit as end:
            return Ended(int(end.code or 0), *capsys.readouterr())
        return Ended(0, *capsys.readouterr())

    return call


@pytest.fixture(scope='module')
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A program that was compiled before in this module is not compiled again: most tests here train the same few."""
    options = {
        'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
        'jax_persistent_cache_min_compile_time_secs': 0.0,
        'jax_persistent_cache_min_entry_size_bytes': -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
