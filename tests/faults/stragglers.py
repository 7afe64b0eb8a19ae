"""Stragglers: one of four processes has slow data, a slow processor or a slow link; do the records say which?

    python tests/faults/stragglers.py [NAME ...]

Each is a run of forty records; a busy machine slows processes by itself.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests/fixtures')]

from cluster_fixtures import ENDLESS, Processes  # noqa: E402

SLOW = 2
RECORDS = 40
SLOW_DATA = 'time.sleep(0.1)'
SLOW_LINK = f"""
import sys, time
if sys.argv[-1] == '{SLOW}':
    from jaxdist.cluster.coordination import Coordination
    call = Coordination._call
    Coordination._call = lambda self, function: (time.sleep(0.1), call(self, function))[1]
"""
"""Before the program: answers of process 0 take 0.1 s longer."""


def pause(run: Processes, ended: threading.Event) -> None:
    """Lets a process have its processor for a fifth of the time, in turns of 20 ms."""
    pid = run.all[SLOW].pid
    while not ended.wait(0.02):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.08)
        os.kill(pid, signal.SIGCONT)


def seen(action: str = '', before: str = '', *, paused: bool = False) -> Counter[str]:
    """How many records name which process and cause."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Processes(Path(folder), *ENDLESS, count=4, action=action, who=SLOW, before=before) as run,
    ):
        run.wait_for_records()
        ended = threading.Event()
        pauses = threading.Thread(target=pause, args=(run, ended))
        if paused:
            pauses.start()
        begin, end = len(run.records()), time.monotonic() + 40
        while len(run.records()) < begin + RECORDS and time.monotonic() < end:
            time.sleep(0.5)
        ended.set()
        if paused:
            pauses.join()
        found = run.records()[begin:]
    names = (record.get('straggler') for record in found)
    return Counter('process {process}, {cause}'.format(**each) if each else 'none' for each in names)


CASES: dict[str, dict[str, Any]] = {
    'nothing': {},
    'slow data': {'action': SLOW_DATA},
    'slow processor': {'paused': True},
    'slow link': {'before': SLOW_LINK},
}


def main(names: list[str]) -> None:
    """Prints what the records name."""
    for name, options in CASES.items():
        if names and name not in names:
            continue
        print(f'{name} on process {SLOW}: {dict(seen(**options).most_common())}', flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
