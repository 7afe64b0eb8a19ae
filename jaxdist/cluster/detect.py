"""Which process of how many this is: from options, or from the environment that launchers set."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from jaxdist.cluster.coordination import detected
from jaxdist.cluster.options import Cluster
from jaxdist.core.errors import InputError

SIZES = ('WORLD_SIZE', 'SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
"""Variables in which launchers give the number of processes that they started: torchrun, SLURM, Open MPI."""
LOCAL = (
    ('LOCAL_RANK', 'LOCAL_WORLD_SIZE'),
    ('SLURM_LOCALID', 'SLURM_STEP_TASKS_PER_NODE'),
    ('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_SIZE'),
)
"""Variables in which they give a process's index on its node, and the number of processes there."""


class Place(NamedTuple):
    """A process's place in a run.

    Attributes:
        coordinator: the address of process 0, `host:port`.
        processes: the number of processes.
        process: the index of this one.
        devices: the numbers of its GPUs; None for all that it sees.
    """

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None


def size(cluster: Cluster, environment: Mapping[str, str] = os.environ) -> int:
    """The number of processes according to options and launchers; can be called before any JAX backend starts.

    >>> size(Cluster('127.0.0.1:9911', 2, 0))
    2
    """
    if cluster.processes:
        return cluster.processes
    # Processes of a launcher join even without --cluster.auto: otherwise each would train the whole run, unnoticed.
    found = [int(environment[name]) for name in SIZES if name in environment]
    return max(found, default=1)


def place(cluster: Cluster, environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process: that of the options, else of torchrun, else as JAX detects it; None if it is alone.

    Raises:
        InputError: only some of the options that go together are given, one is invalid, or nothing is detected.

    >>> place(Cluster(), {}) is None
    True
    >>> under_torchrun = {'RANK': '1', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'node-7', 'MASTER_PORT': '29500'}
    >>> place(Cluster(), under_torchrun)
    Place(coordinator='node-7:29501', processes=2, process=1, devices=None)
    """
    address, processes, process = options = (cluster.coordinator, cluster.processes, cluster.process)
    if address is not None and processes is not None and process is not None:
        found = (address, processes, process)
    elif any(option is not None for option in options):
        raise InputError(
            'the options --cluster.coordinator, --cluster.processes and --cluster.process go together: '
            f'got {address}, {processes} and {process}'
        )
    elif {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} <= set(environment):
        # The port of torchrun is that of its store. TORCHELASTIC_RESTART_COUNT may not be added, for a port that no
        # earlier start used: only the agent whose process failed counts the restart, and the others keep their number.
        port = int(environment['MASTER_PORT']) + 1
        found = (f'{environment["MASTER_ADDR"]}:{port}', int(environment['WORLD_SIZE']), int(environment['RANK']))
    elif cluster.auto or size(cluster, environment) > 1:
        found = _detected(cluster)
    else:
        return None
    address, processes, process = found
    if not 0 <= process < processes:
        raise InputError(
            f'--cluster.process {process} must be from 0 to {processes - 1}: there are {processes} processes'
        )
    host, _, port_text = address.rpartition(':')
    if not host or not port_text.isdecimal():
        raise InputError(f'--cluster.coordinator {address} must be host:port, as in 10.0.0.1:9911')
    return Place(*found, cluster.devices or local_devices(environment)) if processes > 1 else None


def local_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs of one process of a launcher, of those that its node's processes all see; None for all that it sees.

    JAX itself takes one GPU for each process, also if it is the only one of its node (jax#16788).

    >>> local_devices({'SLURM_LOCALID': '0', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)'}) is None
    True
    >>> local_devices({'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '2', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'})
    (2, 3)
    """
    for index, count in LOCAL:
        if index in environment and count in environment:
            here, together = int(environment[index]), _first_number(environment[count])
            visible = environment.get('CUDA_VISIBLE_DEVICES', '')
            seen = len(visible.split(',')) if visible else together
            # A process that sees fewer GPUs than there are processes has been given its own.
            if together == 1 or seen < together:
                return None
            if seen % together:
                raise InputError(
                    f'{together} processes of this node see {seen} GPUs, which cannot be divided among them: give each '
                    'its own with --cluster.devices'
                )
            share = seen // together
            return tuple(range(here * share, (here + 1) * share))
    return None


def _first_number(text: str) -> int:
    """The number of processes of a node, from SLURM's text such as `2(x3),1`: of the first node."""
    return int(text.split(',')[0].split('(')[0])


def _detected(cluster: Cluster) -> tuple[str, int, int]:
    address, processes, process = detected(int(cluster.join_seconds))
    if address is None or processes is None or process is None:
        raise InputError(
            '--cluster.auto finds no launcher: neither torchrun, SLURM, Open MPI, Kubernetes nor Cloud TPU. Give '
            '--cluster.coordinator HOST:PORT, --cluster.processes N and --cluster.process I'
        )
    return address, processes, process
