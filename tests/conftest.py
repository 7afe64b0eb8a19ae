"""The fixture for tests of the command line, and what the tests on a real SLURM need."""

import sys
from pathlib import Path

import pytest
from run_fixtures import CONFIG, Ended, Jaxdist
from slurm_cluster import NEEDS, missing

from jaxdist.cli import main as cli

MISSING = missing()
collect_ignore = ['clusters/test_slurm.py'] if MISSING else []


def pytest_report_header() -> list[str]:
    """Why the tests on a real SLURM are not collected."""
    return [f'not collected: tests/clusters/test_slurm.py, which needs {NEEDS}; {MISSING}'] if MISSING else []


@pytest.fixture
def jaxdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Jaxdist:
    """A function that calls the program in a folder with only a config `small.py`."""
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
