"""Errors of runs of several processes."""

from collections.abc import Iterable

from jaxdist.cluster.exits import PEER, UNLIKE
from jaxdist.core.errors import JaxdistError


def listed(processes: Iterable[int]) -> str:
    """Processes in words.

    >>> listed([2]), listed([1, 3])
    ('process 2', 'processes 1, 3')
    """
    names = [str(k) for k in processes]
    return f'process{"es" * (len(names) > 1)} {", ".join(names)}'


class PeerError(JaxdistError):
    """Another process is gone, or does not answer in time; the message names it."""

    exit_code = PEER


class UnlikeError(JaxdistError):
    """Processes that do not run the same experiment; the message names what differs, and where."""

    exit_code = UNLIKE
