"""Runs of several processes: joining and comparing them, exchanging plain values, watching, and leaving together."""

from jaxdist.cluster.errors import PeerError, UnlikeError
from jaxdist.cluster.exits import EXITS, STUCK, UNLIKE
from jaxdist.cluster.options import Cluster, Limits
from jaxdist.cluster.peers import agree, current, end, explained, finish, gather, join, may_begin, pace, same
from jaxdist.cluster.phases import doing

__all__ = [
    'EXITS',
    'STUCK',
    'UNLIKE',
    'Cluster',
    'Limits',
    'PeerError',
    'UnlikeError',
    'agree',
    'current',
    'doing',
    'end',
    'explained',
    'finish',
    'gather',
    'join',
    'may_begin',
    'pace',
    'same',
]
