"""The processes of a run: joining them, comparing them, exchanging plain values, and leaving together."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

from jaxdist.cluster import coordination
from jaxdist.cluster.coordination import Coordination, Place
from jaxdist.cluster.detect import place
from jaxdist.cluster.errors import PeerError, UnlikeError, listed
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.pace import Pace
from jaxdist.cluster.roll_call import Lines, answer_roll, call_roll
from jaxdist.cluster.stop_agreement import StopAgreement
from jaxdist.cluster.watch import Watch
from jaxdist.core.errors import InputError, JaxdistError

LOST = re.compile(r'gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]onnection (?:reset|closed|refused)|coordination')
"""What JAX's errors say when another process is gone."""
SHOWN = 20
"""Differences between processes that are listed."""


class Peers:
    """The other processes of a run, and this one.

    Args:
        coordination: joins them.
        lines: end when they do.
        options: the limits.
        leaves: whether this process ends when another is stuck or gone.
    """

    def __init__(self, coordination: Coordination, lines: Lines, options: Cluster, *, leaves: bool) -> None:
        self.coordination = coordination
        self.longest = max(dataclasses.astuple(options.limits))
        self.agreement = StopAgreement(coordination, self.longest)
        self.watch = Watch(coordination, lines, options, self.agreement, leaves=leaves)
        self.pace = Pace(self.watch)
        self.watch.start()


_HERE: list[Peers] = []
"""That of this process, once it has joined the others: JAX, too, joins once in a process."""


def join(cluster: Cluster) -> None:
    """Joins the other processes, before any JAX backend starts; does nothing if there is one process.

    From then on this process leaves, by `os._exit`, when another is stuck or gone: see docs/clusters.md.

    Raises:
        InputError: only some of the options that go together are given, one of them is invalid, or the port is taken.
        PeerError: some processes did not come in time; the message names them.
        UnlikeError: two processes have the same index, or expect another number of processes.

    >>> join(Cluster())
    """
    here = place(cluster)
    if here is None or _HERE:
        return
    bind = f'{cluster.bind}:{here.coordinator.rpartition(":")[2]}' if cluster.bind else here.coordinator
    lines = _call_roll(here, bind, cluster.join_seconds)
    joined = Coordination.start(here, bind, cluster.join_seconds, cluster.heartbeat_seconds)
    _HERE.append(Peers(joined, lines, cluster, leaves=True))


def _call_roll(here: Place, bind: str, seconds: float) -> Lines:
    if here.process == 0:
        return call_roll(bind, here.processes, seconds)
    return answer_roll(here.coordinator, here.processes, here.process, seconds)


def current() -> Peers | None:
    """The processes of this run; None if there is one. Without `join`, those of `jax.distributed.initialize`.

    >>> current() is None
    True
    """
    if not _HERE and (joined := coordination.joined()) is not None:
        _HERE.append(Peers(joined, Lines({}), Cluster(), leaves=False))
    return _HERE[0] if _HERE else None


def gather(value: Any, name: str = 'gather') -> list[Any]:
    """The JSON data of every process, in their order; the same on every process.

    Raises:
        PeerError: a process did not come; the message names it.

    >>> gather({'next': 3})
    [{'next': 3}]
    """
    peers = current()
    return peers.coordination.gather(name, value, peers.longest) if peers else [value]


def agree(value: Any) -> Any:
    """Process 0's `value`, JSON data, on every process.

    >>> agree(7)
    7
    """
    return gather(value, 'agree')[0]


def same(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same facts, JSON data by name.

    Raises:
        UnlikeError: they do not, on every process; on process 0 the message says which, and on which processes.

    >>> same({'seed': 0})
    """
    every = gather(dict(facts), 'same')
    names = list(dict.fromkeys(name for each in every for name in each))
    lines = [f'  {name}: {_by_process(values)}' for name in names if _differ(values := [e.get(name) for e in every])]
    if not lines:
        return
    more = [f'  and {len(lines) - SHOWN} more'] if len(lines) > SHOWN else []
    peers = current()
    if peers is not None and peers.coordination.process:
        raise UnlikeError('the processes do not run the same experiment; process 0 lists what differs')
    raise UnlikeError('\n'.join(['the processes do not run the same experiment:', *lines[:SHOWN], *more]))


def _differ(values: list[Any]) -> bool:
    return any(value != values[0] for value in values)


def _by_process(values: list[Any]) -> str:
    """`0 on process 0, 1 on processes 1, 2`."""
    owners: dict[str, list[int]] = {}
    for k, value in enumerate(values):
        owners.setdefault('nothing' if value is None else repr(value), []).append(k)
    return ', '.join(f'{value} on {listed(where[:4])}{", ..." * (len(where) > 4)}' for value, where in owners.items())


def may_begin(step: int, stop: bool) -> bool:
    """Whether this process may begin a step: False once all have agreed to stop before it.

    Args:
        step: the step, counted from 1.
        stop: whether this process has been asked to stop.

    >>> may_begin(4, stop=False), may_begin(5, stop=True)
    (True, False)
    """
    peers = current()
    if peers is None:
        return not stop
    if stop:
        peers.agreement.ask()
    return peers.agreement.may_begin(step)


def pace(step: int) -> dict[str, Any]:
    """What a record says of the processes: the straggler, if there is one; on process 0 alone.

    >>> pace(10)
    {}
    """
    peers = current()
    return peers.pace.record(step) if peers else {}


def explained(error: BaseException) -> BaseException:
    """The reason of an error: another process's, if the error is that it is gone; else the error itself.

    Waits a few seconds for word of it.

    >>> explained(ValueError('mine'))
    ValueError('mine')
    """
    peers = current()
    # JAX raises either; a save that fails for it raises an error of ours. Bad input is nobody's loss.
    jaxs = isinstance(error, RuntimeError | ValueError | JaxdistError) and not isinstance(error, InputError)
    lost = isinstance(error, PeerError) or (jaxs and LOST.search(str(error)))
    if peers is None or not lost:
        return error
    end = time.monotonic() + 3 * peers.watch.period
    while time.monotonic() < end:
        try:
            reason = peers.watch.reason()
        except PeerError as gone:
            return gone
        if reason is not None:
            who, code, words, _ = reason
            found = PeerError(f'process {who} left: {words}' if who else words)
            found.exit_code = code
            return found
        time.sleep(0.1)
    return error if isinstance(error, PeerError) else PeerError(f'another process is gone: {_first_line(error)}')


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [''])[0][:200]


def end(code: int, words: str) -> None:
    """Ends this process at once, with others following; returns if there are no others.

    Args:
        code: the exit code, also of the others.
        words: the reason, which the others show; this process has shown it.

    >>> end(1, 'no data')
    """
    peers = current()
    if peers is not None:
        peers.watch.end(code, words, show=False)


def finish() -> None:
    """Waits for the others at the end of a run, so that none goes while another still needs it.

    Raises:
        PeerError: one did not come; the message names it.

    >>> finish()
    """
    peers = current()
    if peers is not None:
        peers.watch.lines.farewell()
        peers.coordination.barrier('finish', peers.longest)
        peers.watch.stop()
