"""The two worker processes of `measure.py`: sends requests to both at once, and receives their answers."""

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
"""Seconds to wait for an answer."""


class WorkerError(RuntimeError):
    """A worker does not answer; the message has the end of its stderr."""


class Pair:
    """The two workers' processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []
        self.errors: list[IO[str]] = []

    def start(self) -> None:
        """Starts each worker in its namespace."""
        # Without this machine's proxies, which would be used to connect to the other worker.
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
                start_new_session=True,  # Ctrl-C must reach this process only, which ends the workers
            )
            self.processes.append(process)

    def call(self, *request: Any) -> list[dict[str, Any]]:
        """Both workers' answers to a request: the name of a method and its arguments."""
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # a worker that has ended is reported below
                process.stdin.write(json.dumps(request) + '\n')
                process.stdin.flush()
        waiting = {process.stdout: i for i, process in enumerate(self.processes)}
        answers: list[dict[str, Any]] = [{}, {}]
        until = time.monotonic() + PATIENCE
        while waiting:
            ready = select.select(list(waiting), [], [], max(0, until - time.monotonic()))[0]
            if not ready:
                raise WorkerError(f'no answer to {request} in {PATIENCE} s from worker {list(waiting.values())}')
            for stream in ready:
                i = waiting.pop(stream)
                text = stream.readline()
                if not text:
                    raise WorkerError(f'worker {i} ended at {request}:\n{self.stderr_end(i)}')
                answers[i] = json.loads(text)
        return answers

    def timed(self, *request: Any) -> tuple[float, float]:
        """Seconds of a request, from when both workers have begun to when both have ended, and the mean of their
        processor times.
        """
        answers = self.call(*request)
        if any(answer.get('skipped') for answer in answers):
            raise WorkerError(f'a step was skipped because its gradient was not finite: {request}')
        seconds = max(a['end'] for a in answers) - max(a['begin'] for a in answers)
        return seconds, sum(a.get('busy', 0) for a in answers) / 2

    def stderr_end(self, i: int) -> str:
        """The end of a worker's stderr."""
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
