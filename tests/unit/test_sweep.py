"""Sweeps over machines, without an engine: what is started again or given up, what is shown, and what a task reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import SMALL

from jaxdist.cli.sweep import Board
from jaxdist.cluster.tasks import Outcome
from jaxdist.core.errors import InputError
from jaxdist.training import sweep as module
from jaxdist.training import user_code
from jaxdist.training.experiment import load
from jaxdist.training.sweep import Change, Schedule, sweep
from jaxdist.training.sweep_task import experiment_of, task_data

DONE, LOST, STOPPED = Outcome('done'), Outcome('lost', 'killed'), Outcome('stopped')


class Script:
    """An engine whose tasks end as a script says, one outcome for each start of a run; `None` keeps a task going."""

    def __init__(self, outcomes: dict[str, list[Outcome | None]]) -> None:
        self.outcomes, self.started, self.stopped = outcomes, list[list[str]](), list[str]()

    def start(self, tasks: Sequence[dict[str, Any]]) -> list[Any]:
        self.started.append([task['name'] for task in tasks])
        return [(task['name'], task['folder'], self.outcomes[task['name']].pop(0)) for task in tasks]

    def outcome(self, handle: Any) -> Outcome | None:
        name, folder, outcome = handle
        if outcome == DONE:
            row = {'held_out': 0.25, 'seconds': 2.0}
            Path(folder, 'run.json').write_text(json.dumps({'commands': ['']}))
            Path(folder, 'result.json').write_text(json.dumps(row))
        return STOPPED if name in self.stopped else outcome

    def stop(self, handles: Sequence[Any]) -> None:
        self.stopped += [name for name, _, _ in handles]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'SECONDS', 0.0)
    monkeypatch.setattr(module, 'VISIBLE_SECONDS', 0.0)


def swept(folder: Path, engine: Script, retries: int = 2, **more: Any) -> list[tuple[str, str, str]]:
    """What happens to the runs of a script: their names, the kinds and the reasons."""
    tasks = {}
    for name in engine.outcomes:
        (folder / name).mkdir()
        tasks[folder / name] = {'name': name, 'folder': str(folder / name)}
    changes = sweep(tasks, engine, retries, **more)
    return [(change.run.name, change.kind, change.text) for change in changes if change.kind != 'started']


def test_a_lost_run_is_started_again_and_others_go_on(tmp_path: Path) -> None:
    engine = Script({'a': [LOST, STOPPED, DONE], 'b': [DONE]})
    assert swept(tmp_path, engine) == [
        ('a', 'again', 'killed'),
        ('b', 'done', ''),
        ('a', 'again', 'it was asked to stop'),
        ('a', 'done', ''),
    ]
    assert engine.started == [['a', 'b'], ['a'], ['a']]


def test_a_run_that_is_lost_too_often_is_given_up(tmp_path: Path) -> None:
    engine = Script({'a': [LOST, LOST, LOST], 'b': [DONE]})
    changes = swept(tmp_path, engine)
    assert changes[-1] == ('a', 'failed', 'lost 3 times, and given up: killed')
    assert ('b', 'done', '') in changes


def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    engine = Script({'a': [Outcome('failed', 'batch=3 ...', 2)]})
    assert swept(tmp_path, engine) == [('a', 'failed', 'batch=3 ...')]
    assert engine.started == [['a']]


def test_a_result_that_cannot_be_read_here_is_a_failure(tmp_path: Path) -> None:
    ((_, kind, text),) = swept(tmp_path, Script({'a': [Outcome('diverged', 'at step 3')]}))
    assert (kind, 'has no result here: machines of a sweep must share it' in text) == ('failed', True)


def test_a_stop_reaches_all_tasks_and_starts_none_again(tmp_path: Path) -> None:
    engine = Script({'a': [None], 'b': [LOST, DONE]})
    asked = iter([False, True])
    assert swept(tmp_path, engine, stop=lambda: next(asked, True)) == [('b', 'again', 'killed'), ('a', 'stopped', '')]
    assert (engine.started, engine.stopped) == ([['a', 'b']], ['a'])


def test_a_run_that_is_lost_while_all_stop_is_not_started_again() -> None:
    schedule = Schedule(['a'], retries=3)
    assert schedule.take() == ['a']
    assert schedule.end('a', LOST, stop=True) == ('stopped', 'killed', 0)
    assert schedule.take() == []


def test_the_lines_say_what_happened_and_what_is_still_to_come(tmp_path: Path) -> None:
    runs = {tmp_path / name: f'{name}, seed 0' for name in 'ab'}
    a, b = runs
    for run in runs:
        run.mkdir()
    board = Board(runs)
    (a / 'lock').write_text('process 7 on n1, job 3\n')
    assert board.line(Change(a, 'started')) == (
        'a, seed 0: started from step 0, process 7 on n1, job 3  (0 of 2 ended, 1 training, 1 waiting)'
    )
    (a / 'metrics.jsonl').write_text('{"step": 20}\n')
    again = board.line(Change(a, 'again', 'killed'))
    assert again == 'a, seed 0: lost at step 20, and started again: killed  (0 of 2 ended, 0 training, 2 waiting)'
    assert 'started from step 20' in board.line(Change(a, 'started'))
    assert '(1 of 2 ended, 1 training, 0 waiting)' in board.line(Change(b, 'failed', 'batch=3', 2))
    (a / 'result.json').write_text('{"held_out": 0.25, "seconds": 2.0}')
    assert board.line(Change(a, 'done')).startswith('a, seed 0: held-out loss 0.2500 after 2.00 s  (2 of 2 ended')
    assert [(failure.label, failure.code) for failure in board.failures] == [('b, seed 0', 2)]


MINE = """
import dataclasses
import run_fixtures
from jaxdist.data import Digits

@dataclasses.dataclass(frozen=True)
class Mine(Digits):
    pass

def experiment():
    return dataclasses.replace(run_fixtures.SMALL, data=Mine())
"""


def test_a_task_runs_the_users_files_if_they_are_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, 'ROOTS', [])
    (tmp_path / 'mine.py').write_text(MINE)
    experiment = load(tmp_path / 'mine.py')
    data = json.loads(json.dumps(task_data('a', experiment, tmp_path / 'run')))
    assert type(experiment_of(data).data).__name__ == 'Mine'
    (tmp_path / 'mine.py').write_text(MINE + '\n')
    with pytest.raises(InputError, match=r'mine\.py has changed since the sweep was started: repeat the command'):
        experiment_of(data)


def test_a_task_without_code_of_the_users_is_data_alone(tmp_path: Path) -> None:
    data = json.loads(json.dumps(task_data('a', SMALL, tmp_path)))
    assert (data['files'], data['scripts']) == ({}, [])
    assert experiment_of(data) == SMALL
