"""Many processes as one program: joining, and agreeing on plain values."""

from jaxdist.cluster.processes import Cluster, agree, anyone, join

__all__ = ['Cluster', 'agree', 'anyone', 'join']
