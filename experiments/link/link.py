"""Two network namespaces on this machine, with one link between them whose speed can be limited."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAMES = ('jaxdist-link-0', 'jaxdist-link-1')
ADDRESSES = ('10.99.0.1', '10.99.0.2')
"""Addresses inside the namespaces; outside they are not used."""
DEVICE = 'eth0'
MBIT = 100
BURST = '4kb'
"""The token bucket's size: small, or a message of 64 kB would not be slowed at all."""
HOSTS = Path('/etc/netns')
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LinkError(RuntimeError):
    """The link cannot be made; the message names what it needs."""


NEEDS = (
    'It needs Linux with network namespaces, root, and the programs `ip` and `tc` of iproute2, with the `tbf` '
    'queue in the kernel.'
)


def refuse() -> None:
    """Checks that the link can be made.

    Raises:
        LinkError: it cannot be made on this system, or it exists already.
    """
    lacks = []
    if sys.platform != 'linux':
        lacks.append('this is not Linux')
    elif os.geteuid() != 0:
        lacks.append('this is not root')
    lacks += [f'there is no `{program}`' for program in ('ip', 'tc') if shutil.which(program) is None]
    if lacks:
        raise LinkError(f'no link can be made: {", ".join(lacks)}. {NEEDS}')
    listed = {line.split()[0] for line in _call('ip', 'netns', 'list').splitlines() if line}
    if existing := [name for name in NAMES if name in listed or (HOSTS / name).exists()]:
        raise LinkError(
            f'{" and ".join(existing)} exist already, from another run, running or killed. If none is running, remove '
            f'them with: for n in {" ".join(existing)}; do ip netns del $n; rm -r {HOSTS}/$n; done'
        )


class Link:
    """The namespaces and their link, from `make` to `remove`."""

    def __init__(self) -> None:
        self._made: list[str] = []
        self._made_hosts = False

    def make(self) -> None:
        """Creates the namespaces and an unslowed link. Each namespace has a hosts file in which this machine's name has
        its address, since gloo listens at the address of that name.

        Raises:
            LinkError: the system does not allow it; `remove` removes what was created.
        """
        with _undisturbed():
            self._made_hosts = not HOSTS.exists()
            for name, address in zip(NAMES, ADDRESSES, strict=True):
                _call('ip', 'netns', 'add', name)
                self._made.append(name)
                (HOSTS / name).mkdir(parents=True)
                (HOSTS / name / 'hosts').write_text(f'127.0.0.1 localhost\n{address} {socket.gethostname()}\n')
            ends = [['name', DEVICE, 'netns', name] for name in NAMES]
            _call('ip', 'link', 'add', *ends[0], 'type', 'veth', 'peer', *ends[1])
            for name, address in zip(NAMES, ADDRESSES, strict=True):
                _call('ip', '-n', name, 'addr', 'add', f'{address}/24', 'dev', DEVICE)
                _call('ip', '-n', name, 'link', 'set', DEVICE, 'up')
                _call('ip', '-n', name, 'link', 'set', 'lo', 'up')

    def slow(self) -> None:
        """Limits each direction to `MBIT` million bits per second, headers included."""
        limit = ['tbf', 'rate', f'{MBIT}mbit', 'burst', BURST, 'latency', '50ms']
        for name in NAMES:
            _call('tc', '-n', name, 'qdisc', 'replace', 'dev', DEVICE, 'root', *limit)

    def free(self) -> None:
        """Removes the limit."""
        for name in NAMES:
            _call('tc', '-n', name, 'qdisc', 'del', 'dev', DEVICE, 'root')

    def remove(self) -> None:
        """Removes what `make` created, and nothing else; can be called again."""
        with _undisturbed():
            for name in self._made:
                with suppress(LinkError):
                    _call('ip', 'netns', 'del', name)
                shutil.rmtree(HOSTS / name, ignore_errors=True)
            self._made.clear()
            if self._made_hosts:
                with suppress(OSError):
                    HOSTS.rmdir()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Blocks signals, so that creating and removing are not interrupted halfway."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(*command: str) -> str:
    """Runs a program of iproute2, and returns its output."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        error = done.stderr.strip() or f'status {done.returncode}'
        raise LinkError(f'no link can be made: `{" ".join(command)}` failed: {error}. {NEEDS}')
    return done.stdout
