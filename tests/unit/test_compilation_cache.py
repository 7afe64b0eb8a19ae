"""The tests' cache of compiled programs: a second run finds what the first one compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path: Path) -> None:
    def run() -> set[str]:
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'jaxdist/core/bits.py']
        subprocess.run(command, cwd=ROOT, env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path)}, check=True, timeout=120)
        (kept,) = (tmp_path / 'jaxdist-tests').iterdir()
        return {entry.name for entry in kept.iterdir()}

    first = run()
    assert len(first) > 5
    assert run() == first
