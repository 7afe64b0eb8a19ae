"""Recovery under torchrun: four processes are killed at random times, and the run must lose nothing.

    python tests/faults/recovery.py TORCHRUN [KILLS [SEED]]

TORCHRUN is the program of an environment with PyTorch; two agents supervise two processes each. For each SIGKILL there
are the seconds until all former processes have ended, and until the next record. At the end, records and the digests of
all leaves must be those of a run without faults. Then a process dies at every start, and the agents give up.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests/fixtures')]

from cluster_fixtures import CLUSTER, INJECT  # noqa: E402
from subprogram import PROGRAM  # noqa: E402

STEPS, PROCESSES, PATIENCE = 400, 4, 300
WORDS = ('--steps', str(STEPS), '--log-every', '5', '--evaluate-every', str(STEPS), '--save-every', '20')
NOTE = 'import os; os.makedirs("processes", exist_ok=True)\n'
NOTE += 'open(f"processes/{os.getpid()}", "w").write(os.environ["RANK"])\n'
"""Before the program: each process leaves its id and its index."""
SLOWLY = 'time.sleep(0.05)'
DIES = 'if step == 33 and os.environ["RANK"] == "1": os.kill(os.getpid(), 9)'


@contextmanager
def agents(torchrun: str, folder: Path, restarts: int, action: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two agents of torchrun in a folder; leaving the block kills them and what they have started."""
    (folder / 'small.py').write_text(CLUSTER)
    inject = INJECT.replace("if sys.argv[-1] == '{who}':", 'if True:').format(action=action)
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    command = [
        *(torchrun, '--no-python', '--nnodes', '2', '--nproc-per-node', '2', '--max-restarts', str(restarts)),
        *('--rdzv-backend', 'c10d', '--rdzv-id', 'recovery', '--rdzv-endpoint', f'127.0.0.1:{port}'),
        *('--local-addr', '127.0.0.1', '--', sys.executable, '-c', NOTE + inject + PROGRAM),
        *('train', 'small.py', *WORDS, '--run', 'run', '--cluster.auto', '--compilation-cache', '../programs'),
    ]
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    errors = [(folder / f'agent-{k}.log').open('w') for k in range(2)]
    started = [
        subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=each, stderr=each, start_new_session=True)
        for each in errors
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
        for pid in alive(folder):
            os.kill(pid, signal.SIGKILL)
        for process, file in zip(started, errors, strict=True):
            process.wait()
            file.close()


def alive(folder: Path) -> set[int]:
    """The processes of the run that have not ended."""
    pids = {int(path.name) for path in (folder / 'processes').glob('*')}
    return {pid for pid in pids if Path(f'/proc/{pid}/stat').exists() and ' Z ' not in _stat(pid)}


def _stat(pid: int) -> str:
    try:
        return Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return ' Z '


def records(folder: Path) -> list[dict[str, Any]]:
    """The complete records of the run."""
    path = folder / 'run' / 'metrics.jsonl'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('\n')]


def losses(folder: Path) -> dict[int, float]:
    return {record['step']: record['loss'] for record in records(folder) if 'loss' in record}


def digests(folder: Path) -> Any:
    return json.loads((folder / 'run' / 'checkpoints' / str(STEPS) / 'manifest.json').read_text())['leaves']


def seconds_until(what: str, ready: Callable[[], Any], begin: float) -> float:
    while not ready():
        assert time.monotonic() < begin + PATIENCE, f'{what}: not within {PATIENCE} s'
        time.sleep(0.02)
    return time.monotonic() - begin


def kill_one(folder: Path, draw: random.Random) -> tuple[float, float]:
    """Kills one of the processes some time after a record; returns the seconds to the last end and the next record."""
    time.sleep(draw.uniform(0.5, 4.0))
    former, before = alive(folder), records(folder)
    begin = time.monotonic()
    victim = draw.choice(sorted(former))
    os.kill(victim, signal.SIGKILL)
    before = [*before, *records(folder)]
    ended = seconds_until('the former processes end', lambda: not former & alive(folder), begin)
    before += records(folder)
    recorded = seconds_until('a record', lambda: any(each not in before for each in records(folder)), begin)
    index = (folder / 'processes' / str(victim)).read_text()
    print(f'process {index} killed: {ended:.1f} s to the last end, {recorded:.1f} s to the next record', flush=True)
    return ended, recorded


def run(torchrun: str, folder: Path, kills: int, draw: random.Random) -> list[tuple[float, float]]:
    """A run to its end, with some processes killed; the seconds of each recovery."""
    folder.mkdir()
    with agents(torchrun, folder, 2 * kills, SLOWLY) as started:
        first = seconds_until('the first record', lambda: records(folder), time.monotonic())
        print(f'{first:.1f} s to the first record', flush=True)
        seen = [kill_one(folder, draw) for _ in range(kills)]
        codes = [process.wait(PATIENCE) for process in started]
    assert codes == [0, 0], (codes, folder)
    return seen


def crash_loop(torchrun: str, folder: Path) -> None:
    """A process that dies at every start: the agents give up, with an error."""
    folder.mkdir()
    with agents(torchrun, folder, 2, DIES) as started:
        codes = [process.wait(PATIENCE) for process in started]
        starts = len(list((folder / 'processes').iterdir())) / PROCESSES
    logs = ''.join((folder / f'agent-{k}.log').read_text() for k in range(2))
    ends = sorted(set(re.findall(r'exitcode\s*:\s*(-?\d+)', logs)))
    newest = max((step for step in losses(folder)), default=0)
    print(f'crash loop: {starts:g} starts, processes ended with {ends}, the agents with {codes}; last record {newest}')


def main(torchrun: str, kills: int = 3, seed: int = 0) -> None:
    """Prints what was measured."""
    parent = Path(tempfile.mkdtemp())
    draw = random.Random(seed)
    run(torchrun, parent / 'whole', 0, draw)
    seen = run(torchrun, parent / 'killed', kills, draw)
    equal = (losses(parent / 'killed'), digests(parent / 'killed')) == (
        losses(parent / 'whole'),
        digests(parent / 'whole'),
    )
    ended, recorded = (max(each) for each in zip(*seen, strict=True))
    print(f'{kills} kills, at most {ended:.1f} s to the last end and {recorded:.1f} s to the next record')
    print('records and weights are those of the run without faults' if equal else 'SOMETHING WAS LOST')
    crash_loop(torchrun, parent / 'loop')
    shutil.rmtree(parent)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
