"""Two processes on one machine train as one."""

import dataclasses
import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from run_fixtures import CONFIG, finish, losses
from subprogram import PATIENCE, start, wait_for

from jaxdist.training.experiment import Experiment, load

CLUSTER = CONFIG.replace('Mesh(workers=4)', 'Mesh(workers=4, emulate=True)')


def start_two(folder: Path, *words: str, config: str = CLUSTER) -> list[subprocess.Popen[str]]:
    """The two processes of one run."""
    with socket.create_server(('localhost', 0)) as server:
        address = f'localhost:{server.getsockname()[1]}'
    cluster = ['--cluster.coordinator', address, '--cluster.processes', '2', '--cluster.process']
    return [start(folder, 'train', 'small.py', *words, *cluster, str(k), config=config) for k in range(2)]


READ_IN_PARTS = """
from dataclasses import dataclass

import numpy as np

from jaxdist.core.types import Task
from jaxdist.data import from_iterator
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, Mesh


class Part:
    '''Iterates over one part of the rows of every batch.'''

    def __init__(self, size, part, parts):
        self.rows = np.arange(size)[part * size // parts:(part + 1) * size // parts]
        self.next = 0

    def __next__(self):
        self.next += 1
        x = np.sin(self.rows[:, None] * np.arange(1, 5) + self.next)
        return {'x': x, 'y': self.rows % 3}

    def __iter__(self):
        return self

    def get_state(self):
        return {'next': self.next}

    def set_state(self, state):
        self.next = state['next']


@dataclass(frozen=True)
class Streamed:
    def load(self):
        make = lambda seed, size, part, parts: Part(size, part, parts)
        held_out = {'x': np.ones((6, 4)), 'y': np.arange(6) % 3}
        return from_iterator(make, Task('classes', (4,), 3), held_out=held_out, per_process=True)


def experiment():
    return Experiment(
        update='mean() | sgd(0.1)', model=Perceptron(hidden=(8,)), data=Streamed(),
        mesh=Mesh(workers=4, emulate=True), batch=16, steps=4, log_every=2, evaluate_every=4, save_every=2,
    )
"""


def outputs(processes: list[subprocess.Popen[str]]) -> list[tuple[int, list[str], str]]:
    """The exit status, the output without Gloo's messages, and the errors of each process."""
    try:
        texts = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    # Gloo writes from several threads: on a busy machine a message can lack its head, `[Gloo] Rank`.
    lines = [[x for x in out.splitlines() if 'connected peer ranks' not in x and '[Gloo]' not in x] for out, _ in texts]
    return [(p.returncode, out, err) for p, out, (_, err) in zip(processes, lines, texts, strict=True)]


def in_one_process(folder: Path) -> Experiment:
    """Trains the same experiment in this process, on its devices, in the folder `single`."""
    experiment = load(folder / 'runs' / 'small-1' / 'experiment.json')
    finish(experiment, folder / 'single')
    return experiment


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    constraints = 'small: squared_norm(bound=1.0)', 'easy: squared_norm(bound=1e4)'
    first, second = outputs(start_two(tmp_path, '--constraints.hold', *constraints))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert first[1][0] == 'runs/small-1: mean() | sgd(0.1)'
    assert second[1] == []
    assert [path.name for path in (tmp_path / 'runs').iterdir()] == ['small-1']
    folder = tmp_path / 'runs' / 'small-1'
    facts = json.loads((folder / 'run.json').read_text())
    assert (facts['processes'], facts['devices']) == (2, '4 cpu')
    assert len(facts['commands']) == 1
    experiment = in_one_process(tmp_path)
    assert list(losses(folder)) == [2, 4]
    assert losses(folder) == pytest.approx(losses(tmp_path / 'single'), rel=1e-6)
    actual, expected = (json.loads((path / 'verdict.json').read_text()) for path in (folder, tmp_path / 'single'))
    for name, verdict in expected.items():
        assert actual[name]['words'] == verdict['words']
        assert actual[name]['value'] == pytest.approx(verdict['value'], rel=1e-6)
    longer = dataclasses.replace(experiment, steps=6)
    assert finish(longer, folder)[0].value.step == 4
    finish(longer, tmp_path / 'single')
    assert losses(folder) == pytest.approx(losses(tmp_path / 'single'), rel=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_saves(tmp_path: Path) -> None:
    processes = start_two(tmp_path, '--steps', '1000000', '--evaluate-every', '1000000')
    try:
        wait_for(lambda: bool(losses(tmp_path / 'runs' / 'small-1')), processes[0])
        processes[1].send_signal(signal.SIGTERM)
    finally:
        (code, out, _), (other, _, _) = outputs(processes)
    assert (code, other) == (128 + signal.SIGTERM,) * 2
    step = int(out[-2].split()[2])
    assert step >= max(losses(tmp_path / 'runs' / 'small-1'))
    assert out[-2:] == [f'stopped; step {step} is saved. Resume with:', '  jaxdist train runs/small-1']
    assert (tmp_path / 'runs' / 'small-1' / 'checkpoints' / str(step) / 'manifest.json').is_file()


@pytest.mark.slow
def test_processes_that_each_read_a_part_train_as_one_and_resume_as_many(tmp_path: Path) -> None:
    results = outputs(start_two(tmp_path, config=READ_IN_PARTS))
    assert [code for code, _, _ in results] == [0, 0], results
    folder = tmp_path / 'runs' / 'small-1'
    experiment = load(tmp_path / 'small.py')
    finish(experiment, tmp_path / 'single')
    assert losses(folder) == pytest.approx(losses(tmp_path / 'single'), rel=1e-6)
    longer = dataclasses.replace(experiment, steps=6)
    with pytest.raises(ValueError, match=r'saved by 2 processes that each read their part of the data, .* there are 1'):
        finish(longer, folder)
    results = outputs(start_two(tmp_path, '--steps', '6', '--run', 'runs/small-1', config=READ_IN_PARTS))
    assert [code for code, _, _ in results] == [0, 0], results
    finish(longer, tmp_path / 'single')
    assert list(losses(folder)) == [2, 4, 6]
    assert losses(folder) == pytest.approx(losses(tmp_path / 'single'), rel=1e-6)
