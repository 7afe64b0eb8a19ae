"""The step at which all processes stop, when one has been asked to."""

import threading
import time

from jaxdist.cluster.coordination import Coordination

PAUSE = 0.05


class StopAgreement:
    """Agreement on the last step, without a question at every step.

    After the first request the thread of each process that watches publishes the step that the process has begun, also
    while its main thread waits in a collective for the others. The last step is the largest of these: no process has
    begun a later one, since from then on each waits for the others' before it begins another.

    Args:
        coordination: joins the processes.
        longest: seconds to wait for the others' steps.
    """

    def __init__(self, coordination: Coordination, longest: float) -> None:
        self.coordination, self.longest = coordination, longest
        self.lock = threading.Lock()
        self.asked = False
        self.begun = 0
        self.published: int | None = None
        self.last: int | None = None

    def ask(self) -> None:
        """Asks all processes to stop."""
        if not self.asked:
            self.asked = True
            self.coordination.put('stop/asked', True)

    def poll(self) -> None:
        """Called by the thread that watches, with each report."""
        if self.published is None and self.coordination.all('stop'):
            with self.lock:
                self.published = self.begun
            self.coordination.put(f'begun/{self.coordination.process}', self.published)

    def may_begin(self, step: int) -> bool:
        """Whether this process may begin a step; False if all stop before it."""
        with self.lock:
            if self.published is None or step <= self.published:
                self.begun = step
                return True
        if self.last is None:
            self.last = self._largest()
        return step <= self.last

    def _largest(self) -> int:
        end = time.monotonic() + self.longest
        while len(steps := self.coordination.all('begun')) < self.coordination.processes and time.monotonic() < end:
            time.sleep(PAUSE)
        return int(max(steps.values()))
