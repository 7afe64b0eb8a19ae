"""What processes compare before the first step, and what a run's time was spent on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import SMALL, finish, small

from jaxdist import cluster
from jaxdist.core.types import Model, Task
from jaxdist.models import Perceptron
from jaxdist.training.alike import check_processes, check_programs
from jaxdist.training.experiment import Experiment
from jaxdist.training.goodput import FILE, Account, Start
from jaxdist.training.train import prepare


@dataclasses.dataclass(frozen=True)
class Scaled(Perceptron):
    """A perceptron whose code has a number that is no setting."""

    def build(self, task: Task) -> Model:
        model = super().build(task)

        def loss(params: Any, batch: Any, key: Any) -> Any:
            sums, count = model.loss(params, batch, key)
            return {'loss': SCALE[0] * sums['loss'], **{k: v for k, v in sums.items() if k != 'loss'}}, count

        return model._replace(loss=loss)


SCALE = [1.0]


def compared(monkeypatch: pytest.MonkeyPatch, experiment: Experiment) -> dict[str, Any]:
    """The facts that a process of several would compare."""
    facts: dict[str, Any] = {}
    monkeypatch.setattr(cluster, 'current', lambda: object())
    monkeypatch.setattr(cluster, 'same', facts.update)
    check_processes(experiment, Path('runs/a'))
    check_programs(prepare(experiment))
    monkeypatch.undo()
    return facts


def test_the_program_is_compared_where_all_settings_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(SMALL.update, model=Scaled(hidden=(8,)))
    facts = [compared(monkeypatch, experiment), compared(monkeypatch, experiment)]
    assert facts[0] == facts[1]
    assert {'seed', 'mesh.workers', 'update', '--run', 'jax', 'commit', 'data.sha256', 'program'} <= set(facts[0])
    SCALE[0] = 2.0
    try:
        other = compared(monkeypatch, experiment)
    finally:
        SCALE[0] = 1.0
    assert [name for name in other if other[name] != facts[0][name]] == ['program']


def test_the_time_of_a_run_is_accounted_for(tmp_path: Path) -> None:
    finish(dataclasses.replace(SMALL, steps=4), tmp_path)
    done = finish(SMALL, tmp_path)[-1].value
    goodput = done.goodput
    assert goodput.starts == 2
    assert {'start', 'restore', 'compile', 'data', 'step', 'evaluate', 'save', 'down'} <= set(goodput.seconds)
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall, abs=0.1)
    assert goodput.share == pytest.approx(goodput.seconds['step'] / goodput.wall)


def account(folder: Path, step: int, seen: float) -> Account:
    first = Start(0.0, at=50.0, seen=50.0, first=0, saved=40, seconds={'step': 40.0, 'compile': 10.0})
    (folder / FILE).write_text(json.dumps([first._asdict()]))
    account = Account()
    account.resume(folder, step, seen, writes=False)
    return account


def test_steps_after_the_checkpoint_that_a_run_goes_on_from_are_redone(tmp_path: Path) -> None:
    killed = account(tmp_path, 40, seen=57.0).starts[0]
    assert (killed.seen - killed.at, killed.seconds['step']) == (7.0, 40.0)
    damaged = account(tmp_path, 30, seen=57.0).starts[0]  # the newest checkpoint was set aside
    assert (damaged.seen - damaged.at, damaged.seconds['step']) == (17.0, 30.0)


@pytest.mark.parametrize('text', ['', '[1]', '{"began": 0}', '[{"began": "x"}]', '[{"bogus": 1}]'])
def test_a_damaged_account_costs_nothing_but_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    account = Account()
    account.resume(tmp_path, 3, None, writes=False)
    assert len(account.starts) == 1
