"""JAX's coordination service: values and barriers between processes, in which no device takes part.

It works while a collective hangs. This is the only file that uses JAX's private names for it.
"""

import json
import re
from typing import Any, NamedTuple, Self

import jax
from jax._src import clusters, distributed

from jaxdist.cluster.errors import PeerError, listed

MARGIN = 20
"""Seconds by which JAX's own limit of silence is longer than ours, so that ours, which names the process, comes first.
"""


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


def detected(seconds: int) -> tuple[str | None, int | None, int | None]:
    """Address of process 0, number of processes, and index of this one, as JAX finds them; None for what it does not.

    Args:
        seconds: how long to look for the coordinator where that takes time.

    >>> detected(1)
    (None, None, None)
    """
    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    return find(None, None, None, [], None, seconds)[:3]


def joined() -> 'Coordination | None':
    """The coordination of processes that joined by `jax.distributed.initialize`; None for one process.

    >>> joined() is None
    True
    """
    state = distributed.global_state
    return Coordination(state.client, state.process_id, state.num_processes) if state.client is not None else None


class Coordination:
    """Values and barriers between the processes of a run.

    Args:
        client: JAX's client of the coordination service.
        process: the index of this process.
        processes: their number.
    """

    def __init__(self, client: Any, process: int, processes: int) -> None:
        self.client, self.process, self.processes = client, process, processes
        self.uses: dict[str, int] = {}

    @classmethod
    def start(cls, place: Place, bind: str, join: float, silence: float) -> Self:
        """Joins JAX's coordination service; process 0 runs it.

        Args:
            place: the place of this process.
            bind: `host:port` on which process 0 listens.
            join: seconds to wait for the others.
            silence: seconds after which a silent process counts as gone.
        """
        # SIGTERM is ours: JAX's own handler would hide it from the agents that send it.
        jax.config.update('jax_enable_preemption_service', False)
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            local_device_ids=place.devices,
            cluster_detection_method='deactivate',
            coordinator_bind_address=bind,
            initialization_timeout=int(join) + MARGIN,
            heartbeat_timeout_seconds=int(silence) + MARGIN,
        )
        return cls(distributed.global_state.client, place.process, place.processes)

    def put(self, key: str, value: Any) -> None:
        """Stores JSON data under a name, `group/key`, for all to read; replaces what was there.

        Raises:
            PeerError: process 0, which stores it, does not answer.
        """
        self._call(lambda: self.client.key_value_set(key, json.dumps(value), allow_overwrite=True))

    def all(self, group: str) -> dict[str, Any]:
        """All values of a group, by key.

        Raises:
            PeerError: process 0 does not answer.
        """
        pairs = self._call(lambda: self.client.key_value_dir_get(f'{group}/'))
        return {key.removeprefix(f'{group}/'): json.loads(value) for key, value in pairs}

    def barrier(self, name: str, seconds: float) -> None:
        """Waits until all processes are here.

        Raises:
            PeerError: some are not after these seconds; the message names them.
        """
        # JAX takes each name once: after a failure it cannot be used again.
        use = self.uses[name] = self.uses.get(name, -1) + 1
        try:
            self.client.wait_at_barrier(f'{name}/{use}', int(seconds * 1000))
        except Exception as error:
            missing = re.search(r'timed out task names:\s*((?:[\d/].*\n?)+)', str(error))
            if not missing:
                raise PeerError(f'the processes could not wait for each other ({name}): {_line(error)}') from error
            names = sorted(int(text.rpartition(':')[2].rpartition('/')[2]) for text in missing[1].split())
            raise PeerError(f'{listed(names)} did not come to {name!r} within {seconds:g} s') from error

    def gather(self, name: str, value: Any, seconds: float) -> list[Any]:
        """The JSON data of every process, in their order; the same on every process.

        Raises:
            PeerError: as `barrier`.
        """
        use = self.uses.get(name, -1) + 1
        self.put(f'{name}.{use}/{self.process}', value)
        self.barrier(name, seconds)
        # All have come to this barrier, so all have read what was gathered before it.
        if use:
            self._call(lambda: self.client.key_value_delete(f'{name}.{use - 1}/{self.process}'))
        values = self.all(f'{name}.{use}')
        return [values[str(k)] for k in range(self.processes)]

    def _call(self, function: Any) -> Any:
        try:
            return function()
        except Exception as error:
            raise PeerError(f'process 0 does not answer: {_line(error)}') from error


def _line(error: Exception) -> str:
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:200]}'
