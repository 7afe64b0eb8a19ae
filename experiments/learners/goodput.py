"""Goodput of learners with a slow and with a killed one, with and without a quorum.

.venv/bin/python experiments/learners/goodput.py
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from jaxdist.learners.record import read_rounds
from jaxdist.training.run_folder import read_records

HERE = Path(__file__).parent
STREAMING = (
    'adamw(3e-3) | streaming_diloco(every=10, fragments=1, outer=sgd(0.7, momentum=0.5, nesterov=True), overlap=5, '
    'mixing=0.5)'
)
WAYS = {
    'synchronous': ['--quorum', '4'],
    'quorum of 3': ['--quorum', '3', '--grace', '0.5'],
    'quorum of 3, overlap of 5 steps': ['--quorum', '3', '--grace', '0.5', '--update', STREAMING],
}
FAULTS = {'none': [], 'one four times slower': ['--data.slow', '4'], 'one killed after 5 s': []}


class Outcome(NamedTuple):
    """A run: its goodput, wall time, rounds, held-out loss, and the mean time of a step of learners 1 to 3."""

    goodput: float
    wall: float
    rounds: int
    loss: float
    step: float


def one(way: list[str], fault: str, folder: Path) -> Outcome:
    """Runs the program."""
    command = [sys.executable, '-m', 'jaxdist', 'learners', str(HERE / 'paced.py'), '--run', str(folder), *way]
    program = subprocess.Popen([*command, *FAULTS[fault]], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    out, victim, begun = '', 0, 0.0
    for line in program.stdout:
        out += line
        if found := re.match(r'learner 1 is process (\d+)', line):
            victim = int(found[1])
        if line.startswith('round '):
            begun = begun or time.monotonic()
        if 'killed' in fault and victim and begun and time.monotonic() > begun + 5:
            os.kill(victim, signal.SIGKILL)
            victim = 0
    assert program.wait() == 0
    share, wall = re.search(r'goodput (\d+)% of 4 learners x ([\d.]+) s', out).groups()
    rounds = read_rounds(folder)
    steps = [(e['seconds'], e['end'] - e['first']) for r in rounds for e in r.learners if e['learner']]
    loss = next(r['held_out']['loss'] for r in read_records(folder) if 'held_out' in r)
    return Outcome(
        int(share) / 100, float(wall), len(rounds), loss, sum(s for s, _ in steps) / sum(n for _, n in steps)
    )


def main() -> None:
    """Prints the table."""
    print('| fault | rounds close | goodput | ideal time / time | seconds | rounds | held-out loss |')
    print('|---|---|---|---|---|---|---|')
    for fault in FAULTS:
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                found = one(way, fault, Path(folder) / 'run')
            ideal = 200 * found.step / found.wall
            row = f'{found.goodput:.2f} | {ideal:.2f} | {found.wall:.1f} | {found.rounds} | {found.loss:.3f}'
            print(f'| {fault} | {name} | {row} |', flush=True)


if __name__ == '__main__':
    main()
