"""Watches a run of several processes: each reports twice a second, and process 0 decides when one is stuck or gone."""

import atexit
import contextlib
import threading
import time
from typing import Any, NoReturn

from jaxdist.cluster.coordination import Coordination
from jaxdist.cluster.errors import PeerError, listed
from jaxdist.cluster.exits import PEER
from jaxdist.cluster.leaving import leave
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.phases import PHASES
from jaxdist.cluster.roll_call import Lines
from jaxdist.cluster.stop_agreement import StopAgreement
from jaxdist.cluster.stragglers import Cost
from jaxdist.cluster.verdict import Report, judge

PERIOD = 0.5
"""Seconds between two reports."""
MOST = 512
"""Reports a second that process 0 gets; of more processes each reports less often."""


class Watch:
    """Two threads: one reports and reads what the others report, and one checks that process 0 answers.

    Args:
        coordination: joins the processes.
        lines: end when other processes do.
        options: the limits.
        agreement: is asked with each report whether processes stop.
        leaves: whether the process ends when another is stuck or gone.
    """

    def __init__(
        self,
        coordination: Coordination,
        lines: Lines,
        options: Cluster,
        agreement: StopAgreement,
        *,
        leaves: bool = True,
    ) -> None:
        self.coordination, self.lines, self.options = coordination, lines, options
        self.agreement, self.leaves = agreement, leaves
        self.period = max(PERIOD, coordination.processes / MOST)
        # One that stops before its first report counts as silent from here on.
        first = [0, 'start', 0, 0.0, *Cost(0.0, 0.0, 0.0, 0.0)]
        self.reported: dict[int, tuple[list[Any], float]] = {
            k: (first, time.monotonic()) for k in range(coordination.processes)
        }
        self.costs: dict[int, Cost] = {}
        self.cost = Cost(0.0, 0.0, 0.0, 0.0)
        self.answered = time.monotonic()
        self.answer_seconds = 0.0
        self.ended = threading.Event()
        self.leaving = threading.Lock()
        self.threads = [
            threading.Thread(target=each, name=f'jaxdist{each.__name__}', daemon=True)
            for each in (self._correspond, self._check_answers)
        ]

    def start(self) -> None:
        """Starts the threads, which end with the process at the latest."""
        for each in self.threads:
            each.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ends the threads: the run has ended well.

        Python ends a thread that comes back from a call into C++ at its own end, and C++ takes that for an unknown
        exception and aborts: so a thread must be out of JAX by then, unless it waits for a process that is silent.
        """
        self.ended.set()
        for each in self.threads:
            each.join(2 * self.period)

    def end(self, code: int, words: str, culprits: list[int] = [], *, show: bool = True) -> NoReturn:  # noqa: B006
        """Ends this process, and first gives the others the reason; waits forever if another thread is doing so."""
        if not self.leaving.acquire(blocking=False):
            threading.Event().wait()
        here = self.coordination.process
        with contextlib.suppress(PeerError):
            self.coordination.put(f'ends/{here}', [code, words, culprits])
        leave(code, words if show else '', linger=2.5 * self.period if here == 0 else 0.0, stacks=here in culprits)

    def reason(self) -> tuple[int, int, str, list[int]] | None:
        """Which process left first, of those that left word: its index, code, words and culprits."""
        ends = self.coordination.all('ends')
        others = sorted((int(k), *rest) for k, rest in ends.items() if int(k) != self.coordination.process)
        return others[0] if others else None

    def _correspond(self) -> None:
        count = 0
        while not self.ended.wait(self.period):
            count += 1
            here, begin = PHASES.here, time.monotonic()
            try:
                report = [count, here.phase, here.step, begin - here.since, *self.cost]
                self.coordination.put(f'at/{self.coordination.process}', report)
                self.answered = time.monotonic()
                self.answer_seconds = self.answered - begin
                self.agreement.poll()
                dead = self.lines.dead()  # before the reasons: who leaves gives it before its connection ends
                reason = self.reason()
                if self.coordination.process == 0:
                    self._read_reports()
            except PeerError as error:
                self._leave(PEER, str(error), [])
                continue
            if reason is not None:
                who, code, words, culprits = reason
                self._leave(code, words if who == 0 else f'process {who} left: {words}', culprits)
            elif dead:
                self._leave(PEER, f'{listed(dead)} gone', [])
            elif self.coordination.process == 0:
                self._judge()

    def _read_reports(self) -> None:
        now = time.monotonic()
        for key, report in self.coordination.all('at').items():
            if self.reported[int(key)][0] != report:
                self.reported[int(key)] = (report, now)
                self.costs[int(key)] = Cost(*report[4:])

    def _judge(self) -> None:
        now = time.monotonic()
        reports = {
            k: Report(report[1], report[2], report[3] + now - at, now - at) for k, (report, at) in self.reported.items()
        }
        verdict = judge(reports, self.options.limits, self.options.heartbeat_seconds)
        if verdict is not None:
            self._leave(*verdict)

    def _check_answers(self) -> None:
        # The other thread can wait for ever in its call: of a stopped process the connection stays open.
        while not self.ended.wait(self.period):
            silent = time.monotonic() - self.answered
            if silent > self.options.heartbeat_seconds + self.period and self.coordination.process != 0:
                self._leave(PEER, f'process 0 has not answered for {silent:.0f} s', [], alone=True)

    def _leave(self, code: int, words: str, culprits: list[int], alone: bool = False) -> None:
        if not self.leaves or self.ended.is_set():
            return
        if not alone:
            self.end(code, words, culprits)
        if self.leaving.acquire(blocking=False):  # process 0, which would pass it on, is the one that is silent
            leave(code, words)
