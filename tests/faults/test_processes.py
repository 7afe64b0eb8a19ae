"""Two processes on one machine train as one."""

import dataclasses
import json
from pathlib import Path

import pytest
from cluster_fixtures import Processes
from run_fixtures import finish, losses

from jaxdist.training.experiment import Experiment, load
from jaxdist.training.run_folder import read_records

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

SPIKE = """
import os
from jaxdist.data import Digits
real = Digits.load
def load(self):
    data = real(self)
    def batch(seed, step, size, workers):
        if step == 6 and os.path.exists('kill'):
            os.kill(os.getpid(), 9)
        clean = data.batch(seed, step, size, workers)
        return {**clean, 'x': clean['x'] * 1000} if step == 5 else clean
    return data._replace(batch=batch)
Digits.load = load
"""
"""Before the program: batch 5 raises the loss, and where there is a file `kill`, the next one ends the process."""


def in_one_process(folder: Path) -> Experiment:
    """Trains the same experiment in this process, on its devices, in the folder `single`."""
    experiment = load(folder / 'runs' / 'small-1' / 'experiment.json')
    finish(experiment, folder / 'single')
    return experiment


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    constraints = 'small: squared_norm(bound=1.0)', 'easy: squared_norm(bound=1e4)'
    # PYTHONHASHSEED: as new interpreters, which draw different hash seeds. Forked ones share theirs.
    with Processes(tmp_path, '--constraints.hold', *constraints, PYTHONHASHSEED='random') as run:
        first, second = (run.wait()[k] for k in range(2))
    assert (first.code, second.code) == (0, 0), (first, second)
    assert first.out[0] == 'runs/small-1: mean() | sgd(0.1)'
    assert any(line.startswith('goodput ') and ' in 1 start; the rest: ' in line for line in first.out)
    assert second.out == []
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
def test_processes_that_each_read_a_part_train_as_one_and_resume_as_many(tmp_path: Path) -> None:
    with Processes(tmp_path, config=READ_IN_PARTS) as run:
        assert [run.wait()[k].code for k in range(2)] == [0, 0], run.ended
    folder = tmp_path / 'runs' / 'small-1'
    experiment = load(tmp_path / 'small.py')
    finish(experiment, tmp_path / 'single')
    assert losses(folder) == pytest.approx(losses(tmp_path / 'single'), rel=1e-6)
    longer = dataclasses.replace(experiment, steps=6)
    with pytest.raises(ValueError, match=r'saved by 2 processes that each read their part of the data, .* there are 1'):
        finish(longer, folder)
    with Processes(tmp_path, '--steps', '6', '--run', 'runs/small-1', config=READ_IN_PARTS) as run:
        assert [run.wait()[k].code for k in range(2)] == [0, 0], run.ended
    finish(longer, tmp_path / 'single')
    assert list(losses(folder)) == [2, 4, 6]
    assert losses(folder) == pytest.approx(losses(tmp_path / 'single'), rel=1e-6)


@pytest.mark.slow
def test_processes_go_back_from_a_spike_together_also_when_killed_there(tmp_path: Path) -> None:
    words = '--steps', '8', '--log-every', '1', '--spike', '3'
    with Processes(tmp_path, *words, before=SPIKE) as run:
        assert [run.wait()[k].code for k in range(2)] == [0, 0], run.ended
        assert any(line.startswith('the loss has a spike at step 6: ') for line in run.ended[0].out)
    whole = losses(run.run), digests(run.run, 8)
    (tmp_path / 'kill').touch()
    words = *words, '--run', 'runs/killed'
    with Processes(tmp_path, *words, before=SPIKE) as run:
        assert {run.wait()[k].code for k in range(2)} <= {-9, 71}, run.ended
    killed = tmp_path / 'runs' / 'killed'
    assert [record['step'] for record in read_records(killed) if 'rewind' in record] == [4]
    (tmp_path / 'kill').unlink()
    with Processes(tmp_path, *words, before=SPIKE) as run:
        assert [run.wait()[k].code for k in range(2)] == [0, 0], run.ended
        assert not any('spike' in line for line in run.ended[0].out)
    assert (losses(killed), digests(killed, 8)) == whole


def digests(folder: Path, step: int) -> dict[str, str]:
    """The digest of each leaf of a checkpoint."""
    leaves: dict[str, str] = json.loads((folder / 'checkpoints' / str(step) / 'manifest.json').read_text())['leaves']
    return leaves
