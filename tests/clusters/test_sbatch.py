"""The batch script for SLURM, with stand-ins for `srun`, `scontrol` and `jaxdist`: which ends of a run are requeued."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from subprogram import wait_for

from jaxdist.cluster.exits import EXITS

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'slurm' / 'train.sbatch'
RETRY = tuple(code for code, exit in EXITS.items() if exit.retry)
NO_RETRY = tuple(code for code, exit in EXITS.items() if code and not exit.retry)

# As srun does, it ends with the largest status of its two processes, and kills them when it gets SIGTERM. SIGUSR2 is
# SLURM's SIGTERM to the processes, which reaches all of the group of each.
SRUN = """#!/usr/bin/env bash
set -m
options=
while [ "$1" != bash ]; do options="$options $1"; shift; done
echo "srun$options" >>calls
for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" & tasks[SLURM_PROCID]=$!; done
each() { local task; for task in "${tasks[@]}"; do kill "$1" -- "-$task"; done; }
trap 'each -TERM' USR2
trap 'each -KILL' TERM
echo $$ >step
largest=0
for task in "${tasks[@]}"; do
    while wait "$task"; code=$?; kill -0 "$task" 2>/dev/null; do :; done  # a signal interrupts `wait`
    wait "$task"; code=$?
    if [ $code -gt $largest ]; then largest=$code; fi
done
exit $largest
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>calls
if [ "$1" = show ]; then echo "JobId=17 JobState=$STATE Reason=None"; fi
"""
JAXDIST = """#!/usr/bin/env bash
if [ "$SLURM_PROCID" = 0 ]; then echo "jaxdist $*" >>calls; fi
if [ -n "$UNTIL_TERM" ]; then
    trap 'sleep 0.3; echo "saved by $SLURM_PROCID" >>calls; exit 143' TERM
    echo ready >>ready
    for _ in {1..400}; do /bin/sleep 0.05; done
fi
codes=($CODES)
exit "${codes[SLURM_PROCID]}"
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >>calls
kill -USR2 "$(cat step)"
"""
SLEEP = """#!/usr/bin/env bash
if [ "$1" = 60 ]; then echo "sleep 60" >>calls; else exec /bin/sleep "$1"; fi
"""


def start(folder: Path, *words: str, codes: str = '0 0', **env: str) -> subprocess.Popen[str]:
    """Runs the batch script as SLURM does, in a folder with the stand-ins."""
    programs = folder / '.venv' / 'bin'  # the script finds jaxdist here
    programs.mkdir(parents=True, exist_ok=True)
    for name, text in {
        'srun': SRUN,
        'scontrol': SCONTROL,
        'scancel': SCANCEL,
        'jaxdist': JAXDIST,
        'sleep': SLEEP,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    job = {'SLURM_JOB_ID': '17', 'CODES': codes, 'STATE': 'RUNNING', 'UNTIL_TERM': '', **env}
    environment = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')} | job
    return subprocess.Popen(
        ['bash', SCRIPT, *words], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, bufsize=0
    )


def finish(process: subprocess.Popen[str], folder: Path) -> tuple[int, list[str], str]:
    """The exit status of the script, the calls without their options, and the errors."""
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    calls = (folder / 'calls').read_text().splitlines() if (folder / 'calls').exists() else []
    short = [call if call.startswith(('sleep', 'scontrol', 'scancel', 'saved')) else call.split()[0] for call in calls]
    return process.returncode, short, errors


START = ['srun', 'jaxdist']
ASK = 'scontrol show job 17'
REQUEUE = ['scontrol requeue 17', 'sleep 60']


@pytest.mark.parametrize('code', [0, *NO_RETRY])
def test_what_another_start_would_not_mend_is_not_requeued(tmp_path: Path, code: int) -> None:
    status, calls, errors = finish(start(tmp_path, 'small.py', codes=f'{code} {code}'), tmp_path)
    assert (status, calls) == (code, START)
    assert ('not requeued' in errors) == (code != 0)


@pytest.mark.parametrize('code', [*RETRY, 137, 139])
def test_other_ends_are_requeued(tmp_path: Path, code: int) -> None:
    status, calls, errors = finish(start(tmp_path, 'small.py', codes=f'{code} {code}'), tmp_path)
    assert (status, calls) == (code, [*START, ASK, *REQUEUE])
    assert errors == f'exit status {code}: requeued (restart 1 of at most 20)\n'


@pytest.mark.parametrize('code', NO_RETRY)
def test_a_mistake_of_one_process_is_not_hidden_by_the_status_of_those_that_lose_it(tmp_path: Path, code: int) -> None:
    status, calls, errors = finish(start(tmp_path, 'small.py', codes=f'71 {code}'), tmp_path)
    assert (status, calls) == (71, START)
    assert re.match(rf'process 1 on \S+: exit status {code}\n.* not requeued\n', errors)


def test_mistakes_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    finish(start(tmp_path, 'small.py', codes='0 1'), tmp_path)
    (tmp_path / 'calls').unlink()
    assert finish(start(tmp_path, 'small.py', codes='71 71'), tmp_path)[1] == [*START, ASK, *REQUEUE]


@pytest.mark.parametrize('count, requeued', [('19', True), ('20', False), ('21', False)])
def test_restarts_have_a_limit(tmp_path: Path, count: str, requeued: bool) -> None:
    process = start(tmp_path, 'small.py', codes='143 143', SLURM_RESTART_COUNT=count)
    status, calls, errors = finish(process, tmp_path)
    assert (status, calls) == (143, [*START, ASK, *(REQUEUE if requeued else [])])
    words = 'requeued (restart 20 of at most 20)' if requeued else 'after 20 restarts: not requeued'
    assert words in errors


def test_a_cancelled_job_stays_cancelled(tmp_path: Path) -> None:
    """While the step of a cancelled job ends, its state is COMPLETING."""
    status, calls, _ = finish(start(tmp_path, 'small.py', codes='143 143', STATE='COMPLETING'), tmp_path)
    assert (status, calls) == (143, [*START, ASK])


def start_and_wait(folder: Path) -> subprocess.Popen[str]:
    """Starts two processes that train until they get SIGTERM, and then save for a while."""
    process = start(folder, 'small.py', UNTIL_TERM='yes')
    ready = folder / 'ready'
    wait_for(lambda: ready.exists() and ready.read_text().count('ready') == 2, process)
    return process


def test_a_notice_reaches_the_processes_which_save_before_the_job_is_requeued(tmp_path: Path) -> None:
    process = start_and_wait(tmp_path)
    process.send_signal(signal.SIGUSR1)
    status, calls, errors = finish(process, tmp_path)
    assert (status, calls[:3]) == (143, [*START, 'scancel --signal=TERM 17']), errors
    assert sorted(calls[3:5]) == ['saved by 0', 'saved by 1']
    assert calls[5:] == [ASK, *REQUEUE]


def test_the_script_outlives_sigterm_which_slurm_sends_to_the_processes_too(tmp_path: Path) -> None:
    """A second SIGTERM would have the processes leave at once: it is not passed on."""
    process = start_and_wait(tmp_path)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    os.kill(int((tmp_path / 'step').read_text()), signal.SIGUSR2)
    status, calls, errors = finish(process, tmp_path)
    assert (status, calls[:2]) == (143, START), errors
    assert sorted(calls[2:4]) == ['saved by 0', 'saved by 1']
    assert calls[4:] == [ASK, *REQUEUE]


def test_the_run_is_named_by_config_and_job_and_options_are_passed_on(tmp_path: Path) -> None:
    finish(start(tmp_path, 'configs/small.py', '--steps', '7', '--update', 'mean() | sgd(0.1)'), tmp_path)
    step, command = (tmp_path / 'calls').read_text().splitlines()
    assert step == 'srun --kill-on-bad-exit=0 --wait=60 --cpu-bind=none'
    options = '--run runs/small-17 --cluster.auto --steps 7 --update mean() | sgd(0.1)'
    assert command == f'jaxdist train configs/small.py {options}'


def test_a_folder_of_a_run_is_resumed(tmp_path: Path) -> None:
    (tmp_path / 'runs' / 'small-3').mkdir(parents=True)
    finish(start(tmp_path, 'runs/small-3/'), tmp_path)
    command = (tmp_path / 'calls').read_text().splitlines()[-1]
    assert command == 'jaxdist train runs/small-3 --run runs/small-3 --cluster.auto'


def test_without_a_config_it_says_how_to_use_it(tmp_path: Path) -> None:
    status, calls, errors = finish(start(tmp_path), tmp_path)
    assert (status, calls) == (2, [])
    assert errors.startswith('usage: sbatch ')


def test_the_codes_in_the_script_are_those_of_jaxdist() -> None:
    lists = re.findall(r'^ *(?:case \$code in )?((?:\d+ \| )+\d+)\)', SCRIPT.read_text(), re.MULTILINE)
    numbers = [tuple(map(int, each.split(' | '))) for each in lists]
    assert numbers == [NO_RETRY, (0, *NO_RETRY)]
