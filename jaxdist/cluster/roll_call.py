"""The roll call: all processes of a run come to process 0 before JAX starts, which itself would not say who is missing.

Process 0 listens on the coordinator's port. Each process sends one line, its index and the number of processes that it
expects, and gets one line: nothing if all have come, else what is wrong. The connections stay open, since the system
closes those of a process that dies, at once: see `Lines`.
"""

import contextlib
import json
import os
import socket
import time

from jaxdist.cluster.errors import PeerError, UnlikeError
from jaxdist.core.errors import InputError

GREETING = 'jaxdist roll call'
FAREWELL = b'.'
LATER = 2.0
"""Seconds in which others still learn that two do not belong together."""
PAUSE = 0.2
"""Seconds between two tries to reach process 0."""


def call_roll(bind: str, processes: int, seconds: float) -> 'Lines':
    """Process 0: waits until all others have come; frees the port. Returns the connections to them.

    Args:
        bind: `host:port` to listen on.
        processes: the number of processes.
        seconds: how long to wait.

    Raises:
        InputError: the port is taken, or the address is not of this machine.
        PeerError: some have not come in time; the message names them.
        UnlikeError: two have the same index, or expect another number of processes.

    >>> call_roll('127.0.0.1:0', 1, 1.0).dead()
    []
    """
    host, _, port = bind.rpartition(':')
    try:
        server = socket.create_server((host.strip('[]'), int(port)))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f'process 0 cannot listen on {bind}: {reason}. Take another port in --cluster.coordinator, or give '
            'an address of its machine with --cluster.bind'
        ) from error
    come: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as stack:
        answer, peers = ['', ''], []
        end = time.monotonic() + seconds
        try:
            while len(come) < processes - 1:
                server.settimeout(max(end - time.monotonic(), 0.01))
                peers.append(stack.enter_context(server.accept()[0]))
                try:
                    _greet(peers[-1], come, processes)
                except UnlikeError as error:
                    # Those that come a little later learn it too, and do not look for process 0 until their limit.
                    end = min(end, time.monotonic() + LATER) if not answer[0] else end
                    answer = ['UnlikeError', str(error)]
        except TimeoutError:
            missing = [str(k) for k in range(1, processes) if k not in come]
            words = f'of {processes} processes, {", ".join(missing)} did not join within {seconds:g} s'
            answer = answer if answer[0] else ['PeerError', words]
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall((json.dumps(answer) + '\n').encode())
        _obey(answer)
        for peer in set(peers) - set(come.values()):
            peer.close()
        stack.pop_all()
    return Lines(come)


def answer_roll(address: str, processes: int, process: int, seconds: float) -> 'Lines':
    """Another process: comes to process 0, and waits for the rest. Returns the connection to it.

    Args:
        address: of process 0, `host:port`.
        processes: the number of processes.
        process: the index of this one.
        seconds: how long to try.

    Raises:
        PeerError: process 0 is not there, or others did not come.
        UnlikeError: see `call_roll`.

    >>> answer_roll('127.0.0.1:9', 2, 1, 0.1)
    Traceback (most recent call last):
    jaxdist.cluster.errors.PeerError: process 0 cannot be reached at 127.0.0.1:9 for 0.1 s: Connection refused
    """
    host, _, port = address.rpartition(':')
    end, reason = time.monotonic() + seconds, 'no answer'
    while time.monotonic() < end:
        with contextlib.ExitStack() as stack:
            try:
                peer = socket.create_connection((host.strip('[]'), int(port)), timeout=PAUSE * 10)
                stack.enter_context(peer)
                # Process 0 waits `seconds` from its start, which may be later than this one's.
                peer.settimeout(seconds + 5)
                peer.sendall((json.dumps([GREETING, processes, process]) + '\n').encode())
                with peer.makefile() as lines:
                    answer = lines.readline()
            except OSError as error:
                answer, reason = '', error.strerror or str(error)
            if answer:
                _obey(json.loads(answer))
                stack.pop_all()
                return Lines({0: peer})
        time.sleep(PAUSE)
    raise PeerError(f'process 0 cannot be reached at {address} for {seconds:g} s: {reason}')


class Lines:
    """Open connections to other processes, which end when these do.

    Args:
        peers: a connection for each process.
    """

    def __init__(self, peers: dict[int, socket.socket]) -> None:
        self.peers, self.finished = peers, set[int]()
        for peer in peers.values():
            peer.setblocking(False)

    def farewell(self) -> None:
        """Says that this process ends well."""
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(FAREWELL)

    def close(self) -> None:
        """Closes the connections."""
        for peer in self.peers.values():
            peer.close()
        self.peers.clear()

    def dead(self) -> list[int]:
        """The processes whose connection has ended without a farewell, each once."""
        ended = []
        for process, peer in list(self.peers.items()):
            if process in self.finished:
                continue
            try:
                words = peer.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                words = b''
            if words == FAREWELL:  # kept open: the other waits for the farewell of this process
                self.finished.add(process)
                continue
            del self.peers[process]
            peer.close()
            ended.append(process)
        return ended


def _greet(peer: socket.socket, come: dict[int, socket.socket], processes: int) -> None:
    """Reads a process's line; what else connects to the port is not counted."""
    peer.settimeout(5)
    try:
        with peer.makefile() as lines:
            words = json.loads(lines.readline(1000))
    except (OSError, ValueError):
        return
    if not isinstance(words, list) or [*map(type, words)] != [str, int, int] or words[0] != GREETING:
        return
    _, expected, process = words
    if expected != processes or not 0 < process < processes:
        raise UnlikeError(f'process {process} expects {expected} processes, and process 0 {processes}')
    if process in come:
        raise UnlikeError(f'two processes have the index {process}: give each another --cluster.process')
    come[process] = peer


def _obey(answer: list[str]) -> None:
    kind, words = answer
    if kind:
        raise (UnlikeError if kind == 'UnlikeError' else PeerError)(words)
