"""Ctrl-C and notices of termination: the first asks for a clean end, the second ends at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked, as a function without arguments."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.speaks = jax.process_index() == 0  # not asked in the handler: it may come while JAX starts

    def __call__(self) -> bool:
        return self.number is not None

    @property
    def code(self) -> int:
        """The exit status of a program that was ended early: by a signal here, or to another process of the run."""
        return 128 + (self.number or signal.SIGTERM)

    def ask(self, number: int, _: object) -> None:
        """Handles a signal."""
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # the system's own: it ends the program even in the midst of a step
        if self.speaks:
            text = 'stopping after this step, and saving (once more to leave at once)\n'
            os.write(2, (f'\r\x1b[K\x1b[?25h{text}' if os.isatty(2) else text).encode())  # over the live line


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Says whether a signal has come while the block runs."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
