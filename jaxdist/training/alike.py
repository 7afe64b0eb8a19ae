"""What has to be the same: among the processes of a run, and between its starts."""

import hashlib
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxdist import cluster
from jaxdist.cluster.errors import listed
from jaxdist.core.errors import JaxdistError
from jaxdist.training.checkpoint import lock
from jaxdist.training.checkpoint.locking import read_lock
from jaxdist.training.commit import commit
from jaxdist.training.experiment import Experiment, flat
from jaxdist.training.train import Training, first_batch, shapes

PACKAGES = ('jaxdist', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
SEEN_WITHIN = 10.0
"""Seconds in which a file that process 0 has written must appear to the others: a network's file system is slow."""


class DataChangedError(JaxdistError):
    """The data of a run are not those that it was started with; the message has both digests."""

    exit_code = cluster.UNLIKE


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that determine a run's numbers.

    >>> list(versions())[:3]
    ['python', 'jaxdist', 'jax']
    """
    return {'python': platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def check_processes(experiment: Experiment, folder: Path) -> None:
    """Checks that all processes have the same experiment, run folder, versions and commit.

    Raises:
        UnlikeError: they do not; the message names fields and processes.

    >>> check_processes(Experiment(), Path('runs/x'))
    """
    if cluster.current() is not None:
        cluster.same({**flat(experiment), '--run': str(folder), **versions(), 'commit': commit()})


def check_programs(training: Training) -> None:
    """Checks that all processes have the same data and, to the letter, the same program.

    Raises:
        UnlikeError: they do not.

    >>> from jaxdist.training.train import prepare
    >>> from jaxdist.training.experiment import Mesh
    >>> check_programs(prepare(Experiment(mesh=Mesh(workers=2, simulate=True))))
    """
    if cluster.current() is None:
        return
    batch = shapes(training.put(first_batch(training)))
    text = training.program.step.lower(training.program.state, batch).as_text()
    facts = {f'data.{name}': value for name, value in training.data.facts.items()}
    cluster.same({**facts, 'program': hashlib.sha256(text.encode()).hexdigest()[:12]})


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Locks a run's folder, and checks that all processes see it.

    Raises:
        InUseError: another run has locked it.
        CheckpointError: it cannot be written.
        UnlikeError: a process does not see what process 0 has written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, shared(Path(name)):
    ...     Path(name, 'lock').is_file()
    True
    """
    peers = cluster.current()
    if peers is None:
        with lock(folder):
            yield
        return
    token = secrets.token_hex(8)
    if peers.coordination.process == 0:
        with lock(folder, token):
            _check_seen(folder, token)
            yield
    else:
        _check_seen(folder, token)
        yield


def _check_seen(folder: Path, token: str) -> None:
    token = cluster.agree(token)
    end = time.monotonic() + SEEN_WITHIN
    while not (seen := token in read_lock(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    blind = [k for k, each in enumerate(cluster.gather(seen, 'folder')) if not each]
    if blind:
        raise cluster.UnlikeError(
            f'{listed(blind)} do{"es" * (len(blind) == 1)} not see '
            f'the folder {folder} of process 0: give a folder on a file system that all share, with --run'
        )


def check_data(training: Training, former: dict[str, Any]) -> None:
    """Checks that the data are those with which the run began.

    Args:
        training: the run's experiment and data.
        former: facts about the data at the run's last start.

    Raises:
        DataChangedError: they have another digest.

    >>> from jaxdist.training.train import prepare
    >>> from jaxdist.training.experiment import Mesh
    >>> check_data(prepare(Experiment(mesh=Mesh(workers=2, simulate=True))), {'sha256': '00ff' * 16})
    Traceback (most recent call last):
    jaxdist.training.alike.DataChangedError: the data have changed since the run began: their sha256 was 00ff00ff00ff...
    """
    now = training.data.facts
    differ = [name for name in ('sha256', 'examples') if former.get(name) not in (None, now.get(name))]
    if differ:
        name = differ[0]
        short = lambda value: value[:12] if isinstance(value, str) else value  # noqa: E731
        raise DataChangedError(
            f'the data have changed since the run began: their {name} was {short(former[name])} and is '
            f'{short(now.get(name))}. Give the run its data back, or start another in a new folder'
        )
