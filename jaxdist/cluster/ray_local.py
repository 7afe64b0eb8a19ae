"""A Ray cluster: one that is there, or one of this machine for this program alone."""

import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from jaxdist.cluster.options import RayOptions
from jaxdist.core.errors import InputError, MissingExtraError

LOOPBACK = '127.0.0.1'
SECONDS = 5
"""How long an address is tried. Ray tries for two minutes, and then ends the program without a reason."""
QUIET = {
    'RAY_DEDUP_LOGS_SKIP_REGEX': '.*',  # the raylet's words on lost processes, which the commands report in theirs
    'RAY_USAGE_STATS_ENABLED': '0',
}
PRIVATE = {
    'RAY_AUTH_MODE': 'token',
    'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER': '0',  # on Linux, too, Ray then listens on the loopback interface alone
    'RAY_worker_niceness': '0',  # by default 15: on a busy machine the work would hardly go on
}
"""Ray reads its settings from the environment when it is first imported."""


@contextmanager
def ray_cluster(address: str = '', **resources: Any) -> Iterator[ModuleType]:
    """Yields the module `ray`, connected to a cluster or to one that is started; at the end disconnects, or ends it.

    A cluster that is started listens on the loopback interface alone and needs a token, which is in the environment of
    its processes and in no file; the folder with its sockets and logs is this user's, and is removed.

    Args:
        address: `HOST:PORT` of a cluster, or `auto` for one that was started on this machine; by default
            `RAY_ADDRESS` in the environment, and without it a cluster is started.
        resources: of a cluster that is started: `num_cpus`, `num_gpus`, as in `ray.init`; by default the machine's.

    Raises:
        InputError: there is no cluster at the address.
        MissingExtraError: Ray is not installed.

    >>> with ray_cluster('head'):
    ...     pass
    Traceback (most recent call last):
    jaxdist.InputError: 'head' is no address of a Ray cluster: give HOST:PORT, such as 10.0.0.1:6379, or auto
    """
    address = address or os.environ.get('RAY_ADDRESS', '') or 'local'
    ray = _import_ray(address)
    with tempfile.TemporaryDirectory(prefix='ray-', dir='/tmp', ignore_cleanup_errors=True) as folder:
        try:
            _connect(ray, address, folder, resources)
            yield ray
        finally:
            ray.shutdown()


def check_resources(nodes: Sequence[dict[str, Any]], options: RayOptions) -> None:
    """Refuses what no node has, for which Ray would wait for ever.

    Args:
        nodes: the cluster's nodes, as `ray.nodes()`.
        options: what a process needs.

    Raises:
        InputError: no node has as many processors or GPUs.

    >>> check_resources([{'Alive': True, 'Resources': {'CPU': 2}}], RayOptions(gpus=1))
    Traceback (most recent call last):
    jaxdist.InputError: --ray.gpus 1: no node of the Ray cluster has more than 0 GPUs
    """
    for name, least, option in (('CPU', options.cpus, 'cpus'), ('GPU', options.gpus, 'gpus')):
        most = max((node['Resources'].get(name, 0) for node in nodes if node['Alive']), default=0)
        if least > most:
            raise InputError(f'--ray.{option} {least:g}: no node of the Ray cluster has more than {most:g} {name}s')


def _connect(ray: Any, address: str, folder: str, resources: dict[str, Any]) -> None:
    """Connects, or starts a cluster with its sockets in the folder: a short path, as those of sockets must be."""
    started: dict[str, Any] = {'include_dashboard': False, '_node_ip_address': LOOPBACK, **resources}
    started['_temp_dir'] = f'{folder}/r'  # below it, for Ray lets all users write in this one
    try:
        ray.init(address, log_to_driver=False, logging_level='error', **(started if address == 'local' else {}))
    except (Exception, SystemExit) as error:  # Ray has many, and SystemExit for a port that is another program's
        what = f'no Ray cluster at {address}, or its token is not in RAY_AUTH_TOKEN'
        raise InputError(f'{"Ray does not start" if address == "local" else what}: {error}') from error
    if address == 'local' and ray.util.get_node_ip_address() != LOOPBACK:
        raise InputError('Ray was imported before jaxdist started it, so it listens on all interfaces: import it later')


def _import_ray(address: str) -> Any:
    """The module, after a look at the address."""
    if address not in ('local', 'auto'):
        _check_listens(address)
    os.environ |= QUIET
    if address == 'local':
        os.environ.setdefault('RAY_AUTH_TOKEN', secrets.token_hex(32))
        os.environ |= PRIVATE
    try:
        import ray
    except ImportError:
        raise MissingExtraError("this needs Ray: pip install 'jaxdist[ray]'") from None
    return ray


def _check_listens(address: str) -> None:
    match = re.fullmatch(r'([^:/]+):(\d{1,5})', address)
    if match is None:
        raise InputError(f'{address!r} is no address of a Ray cluster: give HOST:PORT, such as 10.0.0.1:6379, or auto')
    try:
        socket.create_connection((match[1], int(match[2])), SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f'nothing listens at {address}, the address of the Ray cluster: {error}') from None
