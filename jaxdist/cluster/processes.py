"""Runs of several processes: joining them, and exchanging plain values between them."""

import json
import os
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdist.core.errors import InputError


@dataclass(frozen=True)
class Cluster:
    """How this process joins the others of a run; without options and launcher it is the only one."""

    coordinator: str | None = None
    """Address of process 0 as `host:port`, the same for all processes."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Index of this process, from 0."""
    auto: bool = False
    """Get all of these from the cluster's environment (SLURM, Open MPI, Kubernetes, Cloud TPU)."""


# Processes of a launcher join even without --cluster.auto: otherwise each would train the whole run, unnoticed.
LAUNCHED = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
"""Environment variables in which launchers give the number of processes that they started."""


def join(cluster: Cluster) -> None:
    """Joins the other processes, before any JAX backend starts; does nothing if there is one process.

    Raises:
        InputError: only some of the options that go together are given, or one of them is invalid.

    >>> join(Cluster())
    """
    address, processes, process = options = (cluster.coordinator, cluster.processes, cluster.process)
    if address is not None and processes is not None and process is not None:
        if not 0 <= process < processes:
            raise InputError(
                f'--cluster.process {process} must be from 0 to {processes - 1}: there are {processes} processes'
            )
        if not address.rpartition(':')[2].isdecimal():
            raise InputError(f'--cluster.coordinator {address} must be host:port, as in 10.0.0.1:9911')
        jax.distributed.initialize(address, processes, process)
    elif any(option is not None for option in options):
        raise InputError(
            'the options --cluster.coordinator, --cluster.processes and --cluster.process go together: '
            f'got {address}, {processes} and {process}'
        )
    elif cluster.auto or size(cluster) > 1:
        jax.distributed.initialize()


def size(cluster: Cluster) -> int:
    """The number of processes according to options and launchers; can be called before any JAX backend starts.

    >>> size(Cluster('127.0.0.1:9911', 2, 0))
    2
    """
    return cluster.processes or max(int(os.environ.get(name, '1')) for name in LAUNCHED)


def agree(number: int) -> int:
    """Process 0's `number`, on every process.

    >>> agree(7)
    7
    """
    return int(multihost_utils.broadcast_one_to_all(np.int64(number))) if jax.process_count() > 1 else number


def anyone(flag: bool) -> bool:
    """Whether `flag` is true in any process; the same on every process.

    >>> anyone(True)
    True
    """
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


def gather(value: Any) -> list[Any]:
    """The JSON data of every process, in their order; the same on every process.

    >>> gather({'next': 3})
    [{'next': 3}]
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([len(text)])))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size]).decode()) for row, size in zip(rows, sizes, strict=True)]
