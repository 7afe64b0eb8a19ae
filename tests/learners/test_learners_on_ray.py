"""Learners as Ray actors, from the command line: processes are killed, and the record replays."""

import itertools
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

from subprogram import PATIENCE, start

from jaxdist.learners.record import read_rounds
from jaxdist.learners.replay import replay
from jaxdist.training.experiment import load
from jaxdist.training.run_folder import read_records

CONFIG = """
import dataclasses, os, time
from jaxdist.data import Digits
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, Mesh


@dataclasses.dataclass(frozen=True)
class Slowly(Digits):
    def load(self):
        data = super().load()

        def batch(seed, step, size, workers):
            time.sleep(0.03 if 'JAXDIST_LEARNER' in os.environ else 0)
            return data.batch(seed, step, size, workers)

        return data._replace(batch=batch)


def experiment():
    line = 'adamw(3e-3) | streaming_diloco(every=8, fragments=2, outer=sgd(0.7, momentum=0.5), codec=int8(block=64), '
    return Experiment(
        update=line + 'feedback=True)', model=Perceptron(hidden=(8,)), data=Slowly(),
        mesh=Mesh(workers=2, simulate=True), batch=8, steps=240, log_every=40, evaluate_every=120, save_every=16,
    )
"""


class Reader(threading.Thread):
    """Reads a program's output while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self.process, self.lines = process, list[str]()
        self.seen = threading.Condition()
        self.start()

    def run(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.seen:
                self.lines.append(line)
                self.seen.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line with a pattern."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self.seen:
            assert self.seen.wait_for(lambda: found() or self.process.poll() is not None, PATIENCE)
            assert found(), self.lines
            return found()[0]


def process_of(line: re.Match[str]) -> int:
    return int(line[1])


def test_a_learner_and_the_synchroniser_are_killed(tmp_path: Path) -> None:
    with start(tmp_path, 'learners', 'small.py', '--quorum', '1', '--grace', '0.2', config=CONFIG) as program:
        reader = Reader(program)
        learner = process_of(reader.wait_for(r'learner 1 is process (\d+)'))
        synchroniser = process_of(reader.wait_for(r'synchroniser is process (\d+)'))
        reader.wait_for('^round ')
        os.kill(synchroniser, signal.SIGKILL)
        reader.wait_for(r'step (8|9|1.)\d/')
        os.kill(learner, signal.SIGKILL)
        reader.wait_for(r'learner 1 was lost \(process \d+ on .*\)')
        reader.wait_for(r'learner 1 is back at step \d+ after .* s \(start 2\)')
        assert program.wait(PATIENCE) == 0, program.stderr and program.stderr.read()
    folder = tmp_path / 'runs' / 'small-1'
    rounds = read_rounds(folder)
    merged = [(r.fragment, e) for r in rounds for e in r.learners]
    assert {(e['learner'], e['start']) for _, e in merged} >= {(0, 1), (1, 1)}
    for k, p in itertools.product(range(2), range(2)):
        spans = [(e['first'], e['end']) for fragment, e in merged if (fragment, e['learner']) == (p, k)]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert rounds[-1].tokens >= 240 * 8
    assert rounds[-1].tokens == max(sum(e['tokens'] for fragment, e in merged if fragment == p) for p in range(2))
    scores = [record['held_out'] for record in read_records(folder) if 'held_out' in record]
    assert scores[-1]['loss'] < 1.6
    assert all(each.equal for each in replay(load(tmp_path / 'small.py'), rounds))
