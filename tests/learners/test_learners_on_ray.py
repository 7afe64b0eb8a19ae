"""Learners as Ray actors, from the command line: processes are killed, and the record replays."""

import itertools
import os
import re
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import launch
from subprogram import PATIENCE, start

from jaxdist.learners.record import Round, read_rounds
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


CLUSTER = """
import signal, sys
from jaxdist.cluster.ray_local import ray_cluster
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with ray_cluster(num_cpus=4) as ray:
    print('address', ray.get_runtime_context().gcs_address, flush=True)
    signal.pause()
"""


@pytest.fixture(scope='module')
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which programs use one cluster of Ray, which starts only once."""
    private = {'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': secrets.token_hex(32)}
    private |= {'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER': '0'}  # else Ray takes another address for the loopback one
    with launch(CLUSTER, cwd=tmp_path_factory.mktemp('cluster'), **private) as cluster:
        try:
            yield {**private, 'RAY_ADDRESS': Reader(cluster).wait_for('address (.*)')[1]}
        finally:
            cluster.terminate()


def no_span_twice(rounds: list[Round]) -> None:
    """Of each learner and fragment, merged steps do not overlap."""
    merged = [(r.fragment, e) for r in rounds for e in r.learners]
    for k, p in itertools.product(range(2), range(2)):
        spans = [(e['first'], e['end']) for fragment, e in merged if (fragment, e['learner']) == (p, k)]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_a_learner_and_the_synchroniser_are_killed(tmp_path: Path, ray: dict[str, str]) -> None:
    words = 'learners', 'small.py', '--quorum', '1', '--grace', '0.2'
    with start(tmp_path, *words, config=CONFIG, **ray) as program:
        reader = Reader(program)
        learner = process_of(reader.wait_for(r'learner 1 is process (\d+)'))
        synchroniser = process_of(reader.wait_for(r'synchroniser is process (\d+)'))
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert [os.getpriority(os.PRIO_PROCESS, process) for process in (learner, synchroniser)] == [mine, mine]
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
    no_span_twice(rounds)
    assert rounds[-1].tokens >= 240 * 8
    assert rounds[-1].tokens == max(sum(e['tokens'] for fragment, e in merged if fragment == p) for p in range(2))
    scores = [record['held_out'] for record in read_records(folder) if 'held_out' in record]
    assert scores[-1]['loss'] < 1.6
    assert all(each.equal for each in replay(load(tmp_path / 'small.py'), rounds))


def test_one_of_the_processes_of_a_learner_is_killed(tmp_path: Path, ray: dict[str, str]) -> None:
    """The other one leaves, both are started again, and the other learner goes on meanwhile."""
    config = CONFIG.replace('simulate=True', 'fsdp=2')
    words = 'learners', 'small.py', '--processes', '2', '--quorum', '1', '--grace', '0.2', '--steps', '160'
    with start(tmp_path, *words, config=config, **ray) as program:
        reader = Reader(program)
        first, second = reader.wait_for(r'learner 1 is process (\d+) on .*, process (\d+) on').groups()
        reader.wait_for('^round ')
        os.kill(int(second), signal.SIGKILL)
        reader.wait_for(rf'learner 1 was lost \(process {second} on .*\)')
        reader.wait_for(r'learner 1 is back at step \d+ after .* s \(start 2\)')
        assert program.wait(PATIENCE) == 0, program.stderr and program.stderr.read()
    assert not Path(f'/proc/{first}').exists()
    rounds = read_rounds(tmp_path / 'runs' / 'small-1')
    assert {(e['learner'], e['start']) for r in rounds for e in r.learners} >= {(0, 1), (1, 1)}
    no_span_twice(rounds)
    assert rounds[-1].tokens >= 160 * 8
    replayed = 'learners', 'runs/small-1', '--script', 'small.py', '--replay'
    with start(tmp_path, *replayed, config=config) as program:
        out, errors = program.communicate(timeout=PATIENCE)
    assert 'all anchors are equal, bit for bit' in out, errors
    with start(tmp_path, *replayed, '--seed', '5', config=config) as program:
        _, errors = program.communicate(timeout=PATIENCE)
    assert (program.returncode, 'seed: 5 given, 0 saved' in errors) == (2, True), errors
