"""Runs: the content of the folder, resuming, and the end of a run."""

import dataclasses
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from run_fixtures import SMALL, Poisoned, PoisonedRows, finish, kinds, losses, saved, small, train_until

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.alike import DataChangedError
from jaxdist.training.checkpoint import CheckpointError, InUseError, lock
from jaxdist.training.diverged import Diverged
from jaxdist.training.experiment import ExperimentError, load, to_json
from jaxdist.training.run import Done, run
from jaxdist.training.run_folder import Log, new_folder, read_records

COMPRESSED = "mean(codec=int8(rounding='stochastic'), feedback=True) | delay(steps=2) | adamw(1e-2)"
LOCAL = 'sgd(0.1) | average(every=3, codec=int8())'


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of SMALL, which tests only read."""
    folder = tmp_path_factory.mktemp('trained') / 'run-1'
    for _ in run(SMALL, folder, command='jaxdist train small.py'):
        pass
    return folder


def test_the_folder_has_everything_to_reproduce_the_run(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        'checkpoints',
        'experiment.json',
        'lock',
        'loss.png',
        'metrics.jsonl',
        'run.json',
        'starts.json',
    }
    assert load(trained / 'experiment.json') == SMALL
    assert sorted(path.name for path in (trained / 'checkpoints').iterdir()) == ['4', '6', '7']
    facts = json.loads((trained / 'run.json').read_text())
    assert facts['commands'] == ['jaxdist train small.py']
    assert facts['resume'].startswith('jaxdist train ')
    assert facts['data']['name'] == 'digits'
    assert facts['devices'].startswith('8 ')
    assert set(facts['versions']) >= {'python', 'jax', 'optax', 'jaxdist'}


def test_metrics_are_json_lines_in_order(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
    assert [record['step'] for record in records if 'loss' in record] == [1, 2, 3, 4, 5, 6, 7]
    assert [record['step'] for record in records if 'held_out' in record] == [4, 7]
    # The ring all-reduce of 610 float32 and one vote: 2 (W - 1) / W of 2444 bytes.
    assert [record['sent'] for record in records if 'sent' in record] == [3666 * step for step in range(1, 8)]
    seconds = [record['seconds'] for record in records]
    assert seconds == sorted(seconds)


def test_a_finished_run_takes_no_more_steps(trained: Path) -> None:
    before = (trained / 'metrics.jsonl').read_text()
    ready, done = finish(SMALL, trained)
    assert ready.value.step == 7
    assert (done.kind, done.value.step, done.value.taken) == ('done', 7, 0)
    assert (trained / 'metrics.jsonl').read_text() == before


def test_the_held_out_loss_improves(trained: Path) -> None:
    first, *_, last = (record['held_out']['loss'] for record in read_records(trained) if 'held_out' in record)
    assert last < first


@pytest.mark.slow
@pytest.mark.parametrize('update, workers, simulate', [(COMPRESSED, 4, False), (LOCAL, 3, True)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, update: str, workers: int, simulate: bool
) -> None:
    experiment = small(update, workers, simulate, batch=12)
    whole, halves = tmp_path / 'whole', tmp_path / 'halves'
    finish(experiment, whole)
    train_until(3, experiment, halves)
    rest = finish(experiment, halves)
    assert rest[0].value.step == 3
    assert losses(halves) == losses(whole)
    (step, actual), (_, expected) = saved(experiment, halves), saved(experiment, whole)
    assert step == 7
    assert [leaf.tobytes() for leaf in actual] == [leaf.tobytes() for leaf in expected]
    commands = json.loads((halves / 'run.json').read_text())['commands']
    assert len(commands) == 2


def test_records_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    for event in run(SMALL, tmp_path):
        if event.kind == 'trained' and event.value['step'] == 5:
            break  # as if killed: the newest checkpoint is of step 4
    assert max(losses(tmp_path)) == 5
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 6, "lo')
    assert finish(SMALL, tmp_path)[0].value.step == 4
    assert [r['step'] for r in read_records(tmp_path) if 'loss' in r] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_a_longer_run_resumes_a_shorter_one(trained: Path, tmp_path: Path) -> None:
    short = small(SMALL.update, steps=4)
    assert kinds(finish(short, tmp_path))[-1] == 'done'
    assert finish(SMALL, tmp_path)[0].value.step == 4
    assert losses(tmp_path) == losses(trained)


@pytest.mark.slow
def test_replicated_state_resumes_on_another_number_of_devices(tmp_path: Path) -> None:
    line = 'mean() | adamw(1e-2)'
    finish(small(line, 8, simulate=True, steps=6), tmp_path / 'whole')
    finish(small(line, 8, simulate=True, steps=2), tmp_path / 'moved')
    finish(small(line, 8, steps=4), tmp_path / 'moved')
    actual, expected = losses(tmp_path / 'moved'), losses(tmp_path / 'whole')
    np.testing.assert_allclose(list(actual.values()), list(expected.values())[:4], rtol=1e-5)
    assert finish(small(line, 4, steps=6), tmp_path / 'moved')[0].value.step == 4
    assert sorted(losses(tmp_path / 'moved')) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_per_worker_state_resumes_with_another_number_of_workers(tmp_path: Path) -> None:
    line = 'sgd(0.1) | average(every=2)'
    finish(small(line, simulate=True, steps=2), tmp_path)
    assert finish(small(line, 2, simulate=True, steps=3), tmp_path)[0].value.step == 2
    assert finish(small(line, steps=4), tmp_path)[0].value.step == 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize('damage', [flip, truncate])
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_used(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    finish(small(SMALL.update, steps=4), tmp_path)
    files = [path for path in (tmp_path / 'checkpoints' / '4' / 'arrays').rglob('*') if path.is_file()]
    damage(max(files, key=lambda path: path.stat().st_size))
    ready = finish(SMALL, tmp_path)[0].value
    assert ready.step == 2
    ((aside, reason),) = ready.damaged
    assert aside == tmp_path / 'checkpoints' / 'damaged-4-0'
    assert aside.is_dir()
    assert reason
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_of_another_experiment_is_refused_with_the_fields(trained: Path) -> None:
    with pytest.raises(
        ExperimentError, match=r'another experiment; they differ in\n  update: .*\n  seed: 5 given, 0 sa'
    ):
        finish(small('mean() | sgd(0.2)', seed=5), trained)


def test_an_edited_experiment_json_does_not_hide_the_difference(tmp_path: Path) -> None:
    finish(small(SMALL.update, steps=2), tmp_path)
    edited = small('mean() | sgd(0.3)', steps=4)
    (tmp_path / 'experiment.json').write_text(json.dumps(to_json(edited)))
    with pytest.raises(ExperimentError, match=r'update: mean\(\) \| sgd\(0.3\) given, mean\(\) \| sgd\(0.1\) saved'):
        finish(edited, tmp_path)


def test_a_folder_in_use_is_refused_with_the_process(trained: Path) -> None:
    with lock(trained), pytest.raises(InUseError, match=rf'in use by process {os.getpid()}'):
        finish(SMALL, trained)


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match=r'cannot write in the folder .*file/run.*Not a directory'):
        finish(SMALL, tmp_path / 'file' / 'run')


def test_a_full_disk_names_the_file_of_the_metrics(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = Log(tmp_path, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r'File too large: .*metrics.jsonl'):
            log.write({'step': 1, 'note': 'x' * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize('guard, step', [(False, 1), (True, 2)])
def test_a_huge_learning_rate_diverges(tmp_path: Path, guard: bool, step: int) -> None:
    experiment = small('mean() | sgd(1e30)', guard=guard, log_every=2, evaluate_every=100, steps=9)
    with pytest.raises(Diverged, match=rf'the loss is nan at step {2 * step}; it was never finite; .*guard'):
        finish(experiment, tmp_path)
    assert read_records(tmp_path)[-1]['loss'] is None
    assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()


def test_a_short_run_that_diverged_shows_in_the_held_out_loss(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r'the held-out loss is nan at step 2; .* the parameters themselves'):
        finish(small('mean() | sgd(1e38)', log_every=10, steps=2), tmp_path)


@pytest.mark.slow
def test_one_bad_step_is_skipped_and_training_goes_on(tmp_path: Path) -> None:
    experiment = small(SMALL.update, simulate=True, data=Poisoned(steps=(3,)))
    assert finish(experiment, tmp_path)[-1].kind == 'done'
    records = {record['step']: record for record in read_records(tmp_path) if 'skipped' in record}
    assert [records[step]['skipped'] for step in range(1, 8)] == [0, 0, 1, 0, 0, 0, 0]
    assert records[3]['loss'] is None
    assert records[7]['loss'] < records[1]['loss']


def test_two_bad_records_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r'step 4; the training loss was last finite at step 2'):
        finish(small(SMALL.update, simulate=True, data=Poisoned(steps=(3, 4))), tmp_path)


def test_without_matplotlib_there_is_no_plot_and_the_run_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    done = finish(small(SMALL.update, steps=1), tmp_path)[-1].value
    assert isinstance(done, Done)
    assert 'matplotlib' in done.problem
    assert not (tmp_path / 'loss.png').exists()


def test_new_folders_have_the_next_number(tmp_path: Path) -> None:
    for name in ('a-1', 'a-9', 'a-10', 'a-b-30', 'a-x'):
        (tmp_path / name).mkdir()
    assert new_folder(tmp_path, 'a') == tmp_path / 'a-11'
    assert new_folder(tmp_path, 'a-b') == tmp_path / 'a-b-31'


def test_events_are_in_order(tmp_path: Path) -> None:
    events = finish(small(SMALL.update, steps=3, log_every=2, evaluate_every=2, save_every=2), tmp_path)
    each = ['trained', 'held_out', 'saved']
    assert kinds(events) == ['ready', *each, *each, 'done']
    assert [event.value for event in events if event.kind == 'saved'] == [2, 3]


def test_data_that_changed_between_two_starts_are_refused_with_both_digests(tmp_path: Path) -> None:
    text = tmp_path / 'text.txt'
    text.write_text('one two three ' * 60)
    model = Transformer(layers=1, width=8, heads=1)
    experiment = small(SMALL.update, 2, True, data=Text(path=str(text), context=8), model=model, batch=4, steps=2)
    finish(experiment, tmp_path / 'run')
    facts = (tmp_path / 'run' / 'run.json').read_text()
    text.write_text('one two threE ' * 60)
    with pytest.raises(DataChangedError, match=r'their sha256 was [0-9a-f]{12} and is [0-9a-f]{12}. Give the run its'):
        finish(dataclasses.replace(experiment, steps=4), tmp_path / 'run')
    assert (tmp_path / 'run' / 'run.json').read_text() == facts


def test_a_record_lists_the_workers_whose_gradient_is_not_finite(tmp_path: Path) -> None:
    finish(small(SMALL.update, data=PoisonedRows(steps=(3,), rows=(4, 13))), tmp_path)
    records = {record['step']: record for record in read_records(tmp_path) if 'loss' in record}
    assert records[3]['not_finite'] == [1, 3]
    assert records[3]['skipped'] == 1
    assert not any('not_finite' in record for step, record in records.items() if step != 3)
