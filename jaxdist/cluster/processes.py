"""Many processes as one program: joining, and agreeing on plain values."""

import os
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdist.core.errors import InputError


@dataclass(frozen=True)
class Cluster:
    """How this process finds the others; alone if nothing is given and no launcher is at work."""

    coordinator: str | None = None
    """Where process 0 listens, as `host:port`, the same for all."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which one this is, from 0."""
    auto: bool = False
    """Find all of it from the cluster's environment (SLURM, Open MPI, Kubernetes, Cloud TPU)."""


LAUNCHED = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
"""Where launchers say how many processes they started: each training by itself would be a mistake that nobody sees."""


def join(cluster: Cluster) -> None:
    """Makes this process one of many, before any JAX backend starts; does nothing where it is alone.

    Raises:
        InputError: options that do not go together.

    >>> join(Cluster())
    """
    address, processes, process = given = (cluster.coordinator, cluster.processes, cluster.process)
    if address is not None and processes is not None and process is not None:
        if not 0 <= process < processes:
            raise InputError(
                f'--cluster.process {process} must be from 0 to {processes - 1}: there are {processes} processes'
            )
        if not address.rpartition(':')[2].isdecimal():
            raise InputError(f'--cluster.coordinator {address} must be host:port, as in 10.0.0.1:9911')
        jax.distributed.initialize(address, processes, process)
    elif any(option is not None for option in given):
        raise InputError(
            'the options --cluster.coordinator, --cluster.processes and --cluster.process go together: '
            f'got {address}, {processes} and {process}'
        )
    elif cluster.auto or size(cluster) > 1:
        jax.distributed.initialize()


def size(cluster: Cluster) -> int:
    """How many processes there are, as far as options and launchers tell: for a look before any backend starts.

    >>> size(Cluster('127.0.0.1:9911', 2, 0))
    2
    """
    return cluster.processes or max(int(os.environ.get(name, '1')) for name in LAUNCHED)


def agree(number: int) -> int:
    """Process 0's number, on every process.

    >>> agree(7)
    7
    """
    return int(multihost_utils.broadcast_one_to_all(np.int64(number))) if jax.process_count() > 1 else number


def anyone(flag: bool) -> bool:
    """Whether the flag is up in any process, on every process.

    >>> anyone(True)
    True
    """
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag
