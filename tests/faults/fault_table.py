"""The table of faults: what a run of two processes does after each, how long that takes, and what it costs.

    python tests/faults/fault_table.py [NAME ...]

Each fault is injected into a run of 60 steps on this machine, which is then started again. Nothing is lost if the
records and the digests of all leaves equal those of a run without faults. It takes minutes; `./scripts/test` runs some
of the same faults as tests.
"""

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests/fixtures')]

from cluster_fixtures import Processes  # noqa: E402

WORDS = ('--steps', '60', '--log-every', '5', '--evaluate-every', '60', '--save-every', '10')
LIMITS = ('--cluster.heartbeat-seconds', '5', '--cluster.limits.data', '5', '--cluster.limits.step', '5')
MARK = 'open("mark", "w").write(repr(time.monotonic()))'
ONCE = f'if step == 33 and not os.path.exists("mark"): {MARK}; '
STOP = 'import signal; os.kill(os.getpid(), signal.SIGSTOP)'


class Fault(NamedTuple):
    """A fault, and what is right.

    Attributes:
        name: what happens.
        codes: the exit codes of the processes that survive it, or of all.
        action: what the process `who` does at a step.
        who: the process.
        words: options.
        options: further arguments of `Processes`.
        again: whether another start recovers.
        between: what happens in the folder before it.
        within: seconds from the fault to the last exit that are right.
    """

    name: str
    codes: tuple[int, ...]
    action: str = ''
    who: int = 1
    words: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012
    again: bool = True
    between: Callable[[Path], None] = lambda run: None
    within: float = 5.0


def damage(run: Path, cut: bool) -> None:
    """Damages the newest checkpoint: one bit, or the second half of its largest file."""
    newest = max(int(path.name) for path in (run / 'checkpoints').iterdir() if path.name.isdecimal())
    files = [path for path in (run / 'checkpoints' / str(newest) / 'arrays').rglob('*') if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data[: len(data) // 2] if cut else data)


NAN = 'b = data.batch(seed, step, size, workers); return {**b, "x": b["x"] * float("nan" if step == 34 else 1)}'
KILL = ONCE + 'os.kill(os.getpid(), 9)'
FULL = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))'
SLOW = 'from jaxdist.training.checkpoint import manifest; import time; w = manifest.write\n'
SLOW += 'manifest.write = lambda *a: (time.sleep(2), w(*a))[1]'
SKEW = "import sys, time\nif sys.argv[-1] == '1':\n    real = time.time; time.time = lambda: real() + 30 * 86400"
FAULTS = [
    Fault('process 1 killed', (71,), KILL),
    Fault('process 0 killed', (71, 134), KILL, who=0),
    Fault('process 1 stopped', (71,), ONCE + STOP, within=7),
    Fault('process 0 stopped', (71,), ONCE + STOP, who=0, within=7),
    Fault('process 1 stuck', (70,), ONCE + 'time.sleep(1000)', within=7),
    Fault('process 0 stuck', (70,), ONCE + 'time.sleep(1000)', who=0, within=7),
    Fault('process 1 raises', (1,), ONCE + 'raise FileNotFoundError("shard 17")'),
    Fault('SIGTERM to process 1', (143,), ONCE + 'os.kill(os.getpid(), 15)\n            time.sleep(0.1)'),
    Fault('disk full', (1,), ONCE + FULL, who=0),
    Fault('folder removed', (1,), ONCE + 'import shutil; shutil.rmtree("runs/small-1")', who=0, again=False),
    Fault('process 1 never joins', (71,), options={'absent': (1,)}, words=('--cluster.join-seconds', '4'), again=False),
    Fault('another seed on process 1', (65,), options={'own': {1: ('--seed', '3')}}, again=False),
    Fault('NaN on one process', (0,), NAN, again=False),
    Fault('clock of process 1 off by 30 days', (0,), options={'before': SKEW}),
    Fault('slow disk: 2 s a save', (0,), options={'before': SLOW}),
    Fault('killed, newest checkpoint has a flipped bit', (71,), KILL, between=lambda run: damage(run, False)),
    Fault('killed, newest checkpoint is cut', (71,), KILL, between=lambda run: damage(run, True)),
]


class Outcome(NamedTuple):
    """What was seen."""

    fault: str
    codes: str
    seconds: str
    words: str
    right: bool
    equal: str


def records(run: Path) -> dict[int, float]:
    """The training losses."""
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def digests(run: Path) -> dict[str, Any]:
    """The digest of each leaf after the last step."""
    leaves: dict[str, Any] = json.loads((run / 'checkpoints' / '60' / 'manifest.json').read_text())['leaves']
    return leaves


def outcome(fault: Fault, expected: tuple[dict[int, float], dict[str, Any]]) -> Outcome:
    """Injects a fault, and starts the run again."""
    folder = Path(tempfile.mkdtemp())
    words = (*WORDS, *LIMITS, *fault.words)
    try:
        with Processes(folder, *words, action=fault.action, who=fault.who, **fault.options) as run:
            stopped = {fault.who} if 'SIGSTOP' in fault.action else set()
            ended = run.wait(*(set(run.all) - stopped))
            last = max(end.at for k, end in ended.items() if k in run.all and k not in stopped)
        killed = {fault.who} if 'os.getpid(), 9' in fault.action else set()
        survivors = {k: ended[k] for k in sorted(set(run.all) - stopped - killed)}
        codes = [end.code + 256 * (end.code < 0) - (end.code == -6) * 116 for end in survivors.values()]
        mark = folder / 'mark'
        begun = float(mark.read_text()) if mark.exists() else run.begun
        took = last - begun
        right = all(code in fault.codes for code in codes) and (not mark.exists() or took < fault.within)
        said = next(
            (line for end in survivors.values() for line in end.err.splitlines() if line.startswith('error')), ''
        )
        equal = '-'
        if fault.again:
            fault.between(run.run)
            with Processes(folder, *words, '--run', 'runs/small-1', action=fault.action, who=fault.who) as second:
                good = all(end.code == 0 for end in second.wait().values())
            same = good and (records(second.run), digests(second.run)) == expected
            equal, right = 'equal' if same else 'NOT EQUAL', right and same
        return Outcome(fault.name, ', '.join(map(str, codes)), f'{took:.1f}', said[:110], right, equal)
    finally:
        shutil.rmtree(folder)


def main(names: list[str]) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder), *WORDS) as run:
        assert [end.code for end in run.wait().values()] == [0, 0], run.ended
        expected = records(run.run), digests(run.run)
    seen = []
    for fault in FAULTS:
        if not names or any(name in fault.name for name in names):
            seen.append(outcome(fault, expected))
            print('| ' + ' | '.join(map(str, seen[-1])) + ' |', flush=True)
    lost = sum(each.equal == 'NOT EQUAL' for each in seen)
    print(f'{sum(each.right for each in seen)} of {len(seen)} faults ended as they should; {lost} lost something')


if __name__ == '__main__':
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    began = time.monotonic()
    main(sys.argv[1:])
    print(f'{time.monotonic() - began:.0f} s')
