"""Signals SIGINT (Ctrl-C) and SIGTERM: the first asks the run to stop and save, the second ends the program."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a stop was requested, as a function without arguments."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.prints = jax.process_index() == 0  # not read in the handler, which may run while JAX starts

    def __call__(self) -> bool:
        return self.number is not None

    @property
    def code(self) -> int:
        """The exit status of a stopped program: of the signal to this process, or to another process of the run."""
        return 128 + (self.number or signal.SIGTERM)

    def ask(self, number: int, _: object) -> None:
        """Handles a signal."""
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # the system's default ends the program even during a step
        if self.prints:
            text = 'stopping after this step, and saving (once more to leave at once)\n'
            os.write(2, (f'\r\x1b[K\x1b[?25h{text}' if os.isatty(2) else text).encode())  # over the live line


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Catches signals while the block runs; the `Stop` that it yields is true after one."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
