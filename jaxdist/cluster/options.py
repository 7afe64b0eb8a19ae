"""The options of a run of several processes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Seconds that a process may stay in a phase, before it counts as stuck."""

    start: float = 1800.0
    """Loading the data and building the program."""
    restore: float = 1800.0
    compile: float = 3600.0
    """The first step, which is compiled."""
    data: float = 600.0
    """Reading one step's batch."""
    step: float = 600.0
    evaluate: float = 1800.0
    save: float = 1800.0


@dataclass(frozen=True)
class RayOptions:
    """The Ray cluster, and what each process gets of it."""

    address: str = ''
    """HOST:PORT of the cluster, or auto. By default RAY_ADDRESS, and without it one of this machine is started."""
    cpus: float = 1
    """CPUs that Ray reserves for a process."""
    gpus: float = 0
    """GPUs that a process gets, and sees alone."""


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
    """Get all of these from the environment: torchrun, SLURM, Open MPI, Kubernetes, Cloud TPU."""
    devices: tuple[int, ...] = ()
    """Numbers of the GPUs of this process, among those that it sees; by default all, or its share of a launcher's."""
    bind: str | None = None
    """Address on which process 0 listens; by default that of `coordinator`."""
    join_seconds: float = 900.0
    """How long the processes wait for each other at the start."""
    heartbeat_seconds: float = 30.0
    """How long a process may be silent before the others leave."""
    limits: Limits = field(default_factory=Limits)
