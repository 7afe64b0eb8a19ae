"""The batch script under a real SLURM of two nodes on this machine; collected where SLURM is installed."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import PLAIN
from run_fixtures import CONFIG, finish, losses
from slurm_cluster import Slurm, slurm
from subprogram import PATIENCE, PROGRAM

from jaxdist.training.experiment import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'scripts' / 'slurm' / 'train.sbatch'
ENV = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), **PLAIN}
SMALL = CONFIG.replace('Mesh(workers=4)', 'Mesh(workers=4, emulate=True)')
LONG = SMALL.replace('steps=4', 'steps=600').replace('_every=2', '_every=20').replace('_every=4', '_every=300')


@pytest.fixture(scope='module')
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp('slurm') / 'cluster') as started:
        yield started


def submit(cluster: Slurm, folder: Path, config: str, *words: str) -> 'Job':
    """Submits a job, in a folder with a config `small.py` and an environment that has jaxdist."""
    (folder / 'small.py').write_text(config)
    program = folder / '.venv' / 'bin' / 'jaxdist'
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{PROGRAM}' \"$@\"\n")
    program.chmod(0o755)
    number = cluster.call('sbatch', '--parsable', str(SCRIPT), 'small.py', *words, cwd=folder, **ENV)
    return Job(cluster, folder, number.strip())


class Job:
    """A job of the batch script."""

    def __init__(self, cluster: Slurm, folder: Path, number: str) -> None:
        self.cluster, self.number = cluster, number
        self.run = folder / 'runs' / f'small-{number}'
        self.log = folder / f'train.sbatch-{number}.log'

    def fact(self, name: str) -> str:
        return self.cluster.job(self.number)[name]

    def wait(self, *states: str) -> str:
        """Waits until the job's state is one of these, and returns it."""
        self.until(lambda: self.fact('JobState') in states)
        return self.fact('JobState')

    def until(self, ready: Callable[[], bool]) -> None:
        try:
            self.cluster.wait(ready)
        except AssertionError as error:
            raise AssertionError(f'{self.text()}\n{error}') from None

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ''


ENDS = ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT')


def test_a_preempted_job_saves_goes_back_into_the_queue_and_completes(cluster: Slurm, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, LONG)
    job.until(lambda: bool(losses(job.run)))
    urgent = '--partition=urgent', '--nodes=2', '--exclusive', '--output=/dev/null', '--wrap=true'
    cluster.call('sbatch', *urgent, cwd=tmp_path)
    assert job.wait(*ENDS) == 'COMPLETED', job.text()
    assert job.fact('Restarts') == '1'
    step, resumed = (job.text().split(words)[1].split()[0] for words in ('stopped; step ', 'resuming from step '))
    assert step == resumed
    assert 20 <= int(step) < 600
    assert 'exit status 143: requeued (restart 1 of at most 20)' in job.text()
    assert list(losses(job.run)) == [*range(20, 601, 20)]
    assert '"processes": 2' in (job.run / 'run.json').read_text()
    finish(load(job.run / 'experiment.json'), tmp_path / 'single')
    assert losses(job.run) == pytest.approx(losses(tmp_path / 'single'), rel=1e-5)


def test_a_notice_before_the_time_is_over_saves_and_a_cancelled_job_does_not_return(
    cluster: Slurm, tmp_path: Path
) -> None:
    job = submit(cluster, tmp_path, LONG.replace('600', '10**6'))
    job.until(lambda: bool(losses(job.run)))
    cluster.call('scancel', '--batch', '--signal=USR1', job.number)  # as --signal=B:USR1 does
    job.until(lambda: job.fact('Restarts') == '1' and 'resuming from step' in job.text())
    cluster.call('scancel', job.number)
    assert job.wait(*ENDS, 'PENDING') == 'CANCELLED', job.text()
    assert job.text().count('stopped; step ') == 2
    assert job.fact('Restarts') == '1'


def test_a_mistake_is_not_tried_again(cluster: Slurm, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, SMALL, '--batch', '3')
    assert job.wait(*ENDS) == 'FAILED'
    assert 'another start would end in the same way: not requeued' in job.text()
    assert (job.fact('Restarts'), job.fact('ExitCode')) == ('0', '2:0')


def sweep(cluster: Slurm, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Compares two lines, each in a job."""
    (folder / 'small.py').write_text(SMALL)
    lines = '--update', 'mean() | sgd(0.1)', '--update', 'mean() | sgd(1e38)'
    command = [sys.executable, '-c', PROGRAM, 'compare', 'small.py', *lines, '--on', 'slurm', *words]
    return cluster.run(*command, cwd=folder, timeout=PATIENCE, **ENV)


def test_a_comparison_as_jobs(cluster: Slurm, tmp_path: Path) -> None:
    wrong = sweep(cluster, tmp_path, '--slurm.partition', 'none')
    assert wrong.returncode == 2
    assert wrong.stderr.count('error: SLURM refuses the runs: sbatch: error: invalid partition specified: none') == 1
    done = sweep(cluster, tmp_path, '--slurm.partition', 'normal', '--slurm.minutes', '5', '--slurm.option', 'mem=100')
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'sgd\(0.1\), seed 0: started from step 0, process \d+ on \S+, job \d+', done.stdout)
    assert 'sgd(1e+38), seed 0: diverged: ' in done.stdout
    assert 'in runs/compare-small: index.html' in done.stdout
