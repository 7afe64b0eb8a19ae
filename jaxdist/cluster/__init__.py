"""Runs of several processes: joining them, and exchanging plain values between them."""

from jaxdist.cluster.processes import Cluster, agree, anyone, gather, join

__all__ = ['Cluster', 'agree', 'anyone', 'gather', 'join']
