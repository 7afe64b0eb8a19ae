"""Jobs of SLURM, submitted by submitit: the first ones as an array, and one that is started again alone."""

import contextlib
import getpass
import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdist.cluster.tasks import Outcome
from jaxdist.core.errors import InputError, MissingExtraError

REQUEUES = 20
"""How often a job goes back into the queue at the end of its time."""
TIMEOUT = 60
"""Seconds for an answer of SLURM's controller."""
LOOK = 5.0
"""Seconds between two looks at the queue."""
VISIBLE = 10.0
"""Seconds that a job's result may need to be seen here, after the job has left the queue."""

Function = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class SlurmOptions:
    """What a run needs on SLURM; a run is one job."""

    partition: str = ''
    """Partition; by default the cluster's."""
    minutes: int = 60
    """Time of one start; a run that needs longer goes back into the queue, and on from its newest checkpoint."""
    cpus: int = 1
    """Processors of a run."""
    gpus: int = 0
    """GPUs of a run."""
    option: tuple[str, ...] = ()
    """More options of sbatch, such as account=mine mem=8G."""


class Requeued:
    """A function that goes back into the queue as it is, when the time of its job ends: see submitit's checkpoints."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Calls the function."""
        return self.function(data)

    def checkpoint(self, data: dict[str, Any]) -> Any:
        """Called by submitit before it has SLURM requeue the job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, data)


class SlurmTasks:
    """An `Engine` on SLURM.

    Args:
        executor: submitit's executor.
        function: what a job calls with its data; it returns an `Outcome` as a dict.
    """

    def __init__(self, executor: Any, function: Function) -> None:
        self.executor, self.function = executor, Requeued(function)
        self.queue, self.looked = set[str](), -LOOK
        self.left: dict[str, float] = {}

    def start(self, tasks: Sequence[dict[str, Any]]) -> list[Any]:
        """See `Engine`."""
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit shows the words of sbatch there too
                jobs: list[Any] = self.executor.map_array(self.function, tasks)
        except RuntimeError as error:
            raise InputError(f'SLURM refuses the runs: {error}') from None
        self.looked = -LOOK
        return jobs

    def outcome(self, handle: Any) -> Outcome | None:
        """See `Engine`. submitit would ask `sacct`, which needs a database that not every cluster has."""
        queued = handle.job_id in self._queued()  # asked first: a job writes its result before it leaves the queue
        if handle.paths.result_pickle.exists():
            try:
                return Outcome(**handle.result())
            except RuntimeError as error:  # submitit's: the function raises nothing, but it may not be found there
                return Outcome('failed', str(error), 1)
        left = self.left.setdefault(handle.job_id, time.monotonic())
        if queued:
            del self.left[handle.job_id]
        if queued or time.monotonic() < left + VISIBLE:
            return None
        return Outcome('lost', f'job {handle.job_id} has left the queue; see {handle.paths.stdout}')

    def stop(self, handles: Sequence[Any]) -> None:
        """See `Engine`."""
        if handles:
            _slurm('scancel', *(job.job_id for job in handles))

    def _queued(self) -> set[str]:
        """The user's jobs that wait or run."""
        if time.monotonic() > self.looked + LOOK:
            answer = _slurm('squeue', f'--user={getpass.getuser()}', '--noheader', '--array', '--format=%i')
            if answer is not None:
                self.queue, self.looked = set(answer.split()), time.monotonic()
        return self.queue


def _slurm(*command: str) -> str | None:
    """The output of a command; None if the controller is away for a while."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout
    except subprocess.SubprocessError:
        return None


@contextlib.contextmanager
def slurm_tasks(function: Function, options: SlurmOptions, folder: Path) -> Iterator[SlurmTasks]:
    """An engine on SLURM, whose jobs log in a new folder `slurm-...`.

    Args:
        function: what a job calls; it can be imported on the nodes.
        options: what a job needs.
        folder: where the new folder is made, on a file system that the nodes share.

    Raises:
        InputError: SLURM is not here, or an option is not NAME=VALUE.
        MissingExtraError: submitit is not installed.

    >>> with slurm_tasks(dict, SlurmOptions(option=('mem',)), Path('nowhere')):
    ...     pass
    Traceback (most recent call last):
    jaxdist.InputError: --slurm.option mem: give NAME=VALUE, such as account=mine
    """
    if unnamed := [text for text in options.option if '=' not in text]:
        raise InputError(f'--slurm.option {unnamed[0]}: give NAME=VALUE, such as account=mine')
    submitit = _import_submitit()
    folder.mkdir(parents=True, exist_ok=True)
    # New each time: submitit reads pickles there, and the comparison's folder may be a stranger's.
    logs = tempfile.mkdtemp(prefix='slurm-', dir=folder.absolute())
    executor = submitit.SlurmExecutor(logs, max_num_timeout=REQUEUES)
    executor.update_parameters(
        job_name='jaxdist',
        partition=options.partition or None,
        time=options.minutes,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus or None,
        stderr_to_stdout=True,
        additional_parameters=dict(text.removeprefix('--').split('=', 1) for text in options.option),
    )
    yield SlurmTasks(executor, function)


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise MissingExtraError("this needs submitit: pip install 'jaxdist[slurm]'") from None
    if shutil.which('sbatch') is None or shutil.which('srun') is None:
        raise InputError('there is no SLURM here (no sbatch and srun): give the command on a login node')
    return submitit
