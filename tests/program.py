"""The program in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = 'import sys; from jaxdist.cli.main import main; sys.argv[0] = "jaxdist"; main()'
PATIENCE = 120


def start(
    folder: Path, *words: str, config: str, program: str = PROGRAM, terminal: int = subprocess.PIPE, **env: str
) -> subprocess.Popen[str]:
    """The program in a process of its own, in a folder with a config `small.py`."""
    (folder / 'small.py').write_text(config)
    environment = {
        name: value for name, value in os.environ.items() if name not in ('NO_COLOR', 'COLUMNS', 'JAXDIST_TRAIN')
    }
    environment |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(Path(__file__).parents[1]), **env}
    command = [sys.executable, '-W', 'error', '-c', program, *words]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=terminal, stderr=terminal)


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(0.1)
