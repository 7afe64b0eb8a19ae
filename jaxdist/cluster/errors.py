"""Errors of runs of several processes."""

from jaxdist.cluster.exits import PEER, UNLIKE
from jaxdist.core.errors import JaxdistError


class PeerError(JaxdistError):
    """Another process is gone, or does not answer in time; the message names it."""

    exit_code = PEER


class UnlikeError(JaxdistError):
    """Processes that do not run the same experiment; the message names what differs, and where."""

    exit_code = UNLIKE
