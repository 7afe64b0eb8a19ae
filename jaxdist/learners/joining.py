"""Joins the processes of a learner, and ends this one when another is gone: Ray starts each of them again."""

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxdist import cluster
from jaxdist.cluster.leaving import leave
from jaxdist.learners.worlds import Member

ASK_EVERY = 0.2
"""Seconds between two questions whether all are there."""
JOIN_SECONDS = 15.0
"""Seconds in which processes that are all there join; one that dies just then has the others wait for so long."""


def join_world(learner: int, process: int, processes: int, host: str, enrol: Callable[[Member], str | None]) -> None:
    """Joins the other processes of a learner as one program of JAX; does nothing if there is one process.

    Args:
        learner: the learner's index.
        process: the index of this process.
        processes: their number.
        host: the address of this machine, on which process 0 listens.
        enrol: the synchroniser's `Worlds.enrol`.

    Raises:
        PeerError: they could not join, as when one of them is gone already.

    >>> join_world(0, 0, 1, '127.0.0.1', lambda member: None)
    """
    if processes == 1:
        return
    member = Member(learner, process, secrets.token_hex(8), f'{host}:{_free_port(host)}')
    while (coordinator := enrol(member)) is None:
        time.sleep(ASK_EVERY)
    cluster.doing('start', 0)
    try:
        cluster.join(cluster.Cluster(coordinator, processes, process, join_seconds=JOIN_SECONDS))
    except Exception as error:  # a port that was taken meanwhile, too: the next start has another
        raise cluster.PeerError(f'the processes of learner {learner} could not join: {error}') from error


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextmanager
def leaving_with_others() -> Iterator[None]:
    """Ends this process if the block fails because another one of its learner is gone, which is nobody's mistake.

    >>> with leaving_with_others():
    ...     raise ValueError('a mistake in the model')
    Traceback (most recent call last):
    ValueError: a mistake in the model
    """
    try:
        yield
    except Exception as error:
        reason = cluster.explained(error)
        if isinstance(reason, cluster.PeerError):
            leave(reason.exit_code, str(reason))
        raise
