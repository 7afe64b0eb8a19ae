"""Faults of runs of two processes: the survivors leave soon, with the right exit code, and say whose fault it was.

More faults, with times, are in `tests/faults/fault_table.py`.
"""

import signal
import time
from pathlib import Path

import pytest
from cluster_fixtures import ENDLESS, Processes

pytestmark = pytest.mark.slow

SOON = 5 + 5
"""Seconds from a fault to the last survivor's exit, with 5 for a busy machine."""


def test_other_options_of_a_process_end_all_before_the_first_step(tmp_path: Path) -> None:
    own = {1: ('--seed', '3', '--save-every', '3', '--update', 'mean() | sgd(0.2)')}
    with Processes(tmp_path, own=own) as run:
        first, second = (run.wait()[k] for k in range(2))
    assert (first.code, second.code) == (65, 65), (first, second)
    assert first.err.splitlines() == [
        'error: the processes do not run the same experiment:',
        "  update: 'mean() | sgd(0.1)' on process 0, 'mean() | sgd(0.2)' on process 1",
        '  seed: 0 on process 0, 3 on process 1',
        '  save_every: 2 on process 0, 3 on process 1',
    ]
    assert 'process 0 lists what differs' in second.err
    assert not run.run.exists()


def test_processes_that_do_not_see_one_folder_end_before_the_first_step(tmp_path: Path) -> None:
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    before = 'from jaxdist.training import alike; alike.SEEN_WITHIN = 1.0'
    with Processes(tmp_path, folders={1: elsewhere}, before=before) as run:
        first = run.wait()[0]
    assert first.code == 65, first
    assert first.err == (
        'error: process 1 does not see the folder runs/small-1 of process 0: give a folder on a file system that all '
        'share, with --run\n'
    )


def test_a_killed_process_is_named_by_the_survivor(tmp_path: Path) -> None:
    with Processes(tmp_path, *ENDLESS) as run:
        run.wait_for_records()
        at = run.signal(1, signal.SIGKILL)
        survivor = run.wait()[0]
    assert survivor.code == 71, survivor
    assert survivor.err.startswith('error: process 1 ')
    assert survivor.at - at < SOON


def test_a_stopped_process_is_named_after_the_heartbeat(tmp_path: Path) -> None:
    with Processes(tmp_path, *ENDLESS, '--cluster.heartbeat-seconds', '3') as run:
        run.wait_for_records()
        at = run.signal(1, signal.SIGSTOP)
        survivor = run.wait(0)[0]
    assert survivor.code == 71, survivor
    assert survivor.err.startswith('error: process 1 has not answered for 3 s: it was in ')
    assert survivor.at - at < 3 + 2 + 2 + 5


def test_slow_data_are_reported_and_a_stuck_process_is_named(tmp_path: Path) -> None:
    action = 'time.sleep(1000 if step == 40 else 0.05)'
    limits = ('--cluster.limits.data', '4', '--cluster.limits.step', '4')
    with Processes(tmp_path, *ENDLESS, *limits, action=action) as run:
        run.wait_for_records(35)
        begin = time.monotonic()
        first, second = (run.wait()[k] for k in range(2))
    assert (first.code, second.code) == (70, 70), (first, second)
    assert "process 1 has been in 'data' of step 41 for" in first.err
    assert ' in batch\n' in second.err  # the stack of the process that is stuck
    assert second.at - begin < 4 + 2 + 2 + 5
    slow = [record['straggler'] for record in run.records() if 'straggler' in record]
    assert {(each['process'], each['cause']) for each in slow} == {(1, 'data')}
    assert all(each['seconds'] > 0.05 for each in slow)
    assert any('process 1 is slow: data ' in line for line in first.out)


def test_an_exception_of_one_process_is_shown_by_it_and_ends_the_other(tmp_path: Path) -> None:
    action = 'if step == 3: raise FileNotFoundError("shard 17")'
    with Processes(tmp_path, *ENDLESS, action=action) as run:
        first, second = (run.wait()[k] for k in range(2))
    assert (first.code, second.code) == (1, 1), (first, second)
    assert second.err.splitlines()[-1] == 'FileNotFoundError: shard 17'
    assert first.err == 'error: process 1 left: FileNotFoundError: shard 17\n'


def test_a_second_run_leaves_at_once_and_a_signal_to_one_process_stops_the_first(tmp_path: Path) -> None:
    with Processes(tmp_path, *ENDLESS) as run:
        run.wait_for_records()
        with Processes(tmp_path, *ENDLESS, '--run', 'runs/small-1') as other:
            ended = other.wait()
        assert {ended[k].code for k in range(2)} == {1}, ended
        assert ended[0].err.startswith(f'error: runs/small-1 is in use by process {run.all[0].pid} on ')
        run.wait_for_records(max(record['step'] for record in run.records()) + 5)  # unharmed
        run.signal(1, signal.SIGTERM)
        first, second = (run.wait()[k] for k in range(2))
    assert (first.code, second.code) == (143, 143), (first, second)
    step = int(first.out[-2].split()[2].rstrip(';'))
    assert step >= max(record['step'] for record in run.records())
    assert first.out[-2:] == [f'stopped; step {step} is saved. Resume with:', '  jaxdist train runs/small-1']
    assert (run.run / 'checkpoints' / str(step) / 'manifest.json').is_file()
