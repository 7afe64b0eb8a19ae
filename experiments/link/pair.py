"""The two worker processes of `measure.py`: orders to both at once, and their answers."""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from link import ADDRESSES, NAMES

WORKER = Path(__file__).with_name('worker.py')
PATIENCE = 180
"""Seconds that an answer may take."""


class WorkerError(RuntimeError):
    """A worker does not answer; the text has the end of what it said."""


class Pair:
    """The two workers' processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []
        self.errors: list[IO[str]] = []

    def start(self) -> None:
        """Starts each in its namespace, without the proxies of this machine: they would be asked for its peer."""
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')}
        for i, name in enumerate(NAMES):
            self.errors.append((self.folder / f'stderr{i}').open('w+'))
            command = ['ip', 'netns', 'exec', name, sys.executable, str(WORKER), str(i), ADDRESSES[0]]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors[-1],
                text=True,
                env=env,
                start_new_session=True,  # Ctrl-C is for us alone
            )
            self.processes.append(process)

    def tell(self, *order: Any) -> list[dict[str, Any]]:
        """Both workers' answers to an order."""
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # that it ended is told below
                process.stdin.write(json.dumps(order) + '\n')
                process.stdin.flush()
        waiting = {process.stdout: i for i, process in enumerate(self.processes)}
        answers: list[dict[str, Any]] = [{}, {}]
        until = time.monotonic() + PATIENCE
        while waiting:
            ready = select.select(list(waiting), [], [], max(0, until - time.monotonic()))[0]
            if not ready:
                raise WorkerError(f'no answer to {order} in {PATIENCE} s from worker {list(waiting.values())}')
            for stream in ready:
                i = waiting.pop(stream)
                text = stream.readline()
                if not text:
                    raise WorkerError(f'worker {i} ended at {order}:\n{self.said(i)}')
                answers[i] = json.loads(text)
        return answers

    def timed(self, *order: Any) -> tuple[float, float]:
        """Seconds from when both had begun to when both had ended, and of processors, the mean of both."""
        answers = self.tell(*order)
        if any(answer.get('skipped') for answer in answers):
            raise WorkerError(f'a step was left out because its gradient was not finite: {order}')
        seconds = max(a['end'] for a in answers) - max(a['begin'] for a in answers)
        return seconds, sum(a.get('busy', 0) for a in answers) / 2

    def said(self, i: int) -> str:
        """The end of what a worker wrote to stderr."""
        self.errors[i].seek(0)
        return self.errors[i].read()[-3000:]

    def end(self) -> None:
        """Ends both processes; can be called again."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        for file in self.errors:
            file.close()
