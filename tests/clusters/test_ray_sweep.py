"""A comparison on a real Ray cluster of this machine, which only this machine can reach."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import CONFIG
from subprogram import PATIENCE, start, wait_for

from jaxdist.training.run_folder import read_records

pytestmark = pytest.mark.slow

MINE = """
import dataclasses


@dataclasses.dataclass(frozen=True)
class Mine(Digits):
    pass
"""
LONG = CONFIG.replace('\n\ndef', f'{MINE}\n\ndef').replace('Digits()', 'Mine()').replace('steps=4', 'steps=400')
LONG = LONG.replace('workers=4', 'workers=4, emulate=True').replace('_every=2', '_every=20')
WORDS = ('compare', 'small.py', '--update', 'mean() | sgd(0.1)', '--update', 'mean() | sgd(0.05)')


TOKEN = 'a' * 64
LOOPBACK = {'0100007F', '0000000000000000FFFF00000100007F', '00000000000000000000000001000000'}
"""127.0.0.1, the same in IPv6, and ::1."""


def addresses() -> set[str]:
    """The addresses on which processes of the cluster with this token listen, as the kernel writes them."""
    sockets = set()
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            words = (process / 'environ').read_bytes().split(b'\0')
            if {f'RAY_AUTH_TOKEN={TOKEN}'.encode(), b'RAY_AUTH_MODE=token'} <= set(words):
                sockets |= {os.readlink(file) for file in (process / 'fd').iterdir()}
    lines = [line.split() for name in ('tcp', 'tcp6') for line in Path('/proc/net', name).read_text().splitlines()[1:]]
    return {line[1].split(':')[0] for line in lines if line[3] == '0A' and f'socket:[{line[9]}]' in sockets}


def results(folder: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """The records and the row of each run, without its times."""
    found = {}
    for run in (folder / 'runs' / 'compare-small' / 'runs').iterdir():
        records, row = read_records(run), json.loads((run / 'result.json').read_text())
        found[run.name] = [{k: v for k, v in each.items() if k != 'seconds'} for each in [*records, row]]
    return found


def test_a_comparison_whose_process_is_killed_equals_a_local_one(tmp_path: Path) -> None:
    local, remote = tmp_path / 'local', tmp_path / 'ray'
    for folder in (local, remote):
        folder.mkdir()
    on_ray = start(remote, *WORDS, '--on', 'ray', config=LONG, RAY_AUTH_TOKEN=TOKEN)
    lock = 'runs/compare-small/runs/*/lock'
    wait_for(lambda: any(read_records(path.parent) for path in remote.glob(lock)), on_ray)
    listening = addresses()
    assert listening
    assert listening <= LOOPBACK
    run = next(path.parent for path in remote.glob(lock) if read_records(path.parent))
    process = re.match(r'process (\d+) on ', (run / 'lock').read_text())
    assert process is not None
    os.kill(int(process[1]), signal.SIGKILL)
    here = start(local, *WORDS, config=LONG)
    out, err = on_ray.communicate(timeout=PATIENCE)
    assert on_ray.returncode == 0, out + err
    assert err == ''
    assert out.count('and started again: The worker died unexpectedly') == 1
    assert out.count('seed 0: started from step') == 3
    assert '(2 of 2 ended, 0 training, 0 waiting)' in out
    assert 'in runs/compare-small: index.html' in out
    out, err = here.communicate(timeout=PATIENCE)
    assert here.returncode == 0, out + err
    assert results(remote) == results(local)
    facts = json.loads((run / 'run.json').read_text())
    assert len(facts['commands']) == 2
