"""Tasks that an engine runs on some machine: how they are started, how they end and how they are stopped."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol


class Outcome(NamedTuple):
    """How a task ended.

    Attributes:
        kind: `done`; `diverged`, which is a result too; `stopped`, with its state saved; `failed`, as another start
            would; or `lost`, such as a process that was killed.
        text: the reason.
        code: the exit code of a command, where it failed.
    """

    kind: Literal['done', 'diverged', 'stopped', 'failed', 'lost']
    text: str = ''
    code: int = 0


class Engine(Protocol):
    """Runs one function on many machines, once for each task, whose argument is JSON data."""

    def start(self, tasks: Sequence[dict[str, Any]]) -> list[Any]:
        """Starts tasks, or queues them, and returns a handle for each."""

    def outcome(self, handle: Any) -> Outcome | None:
        """How a task ended; None while it has not."""

    def stop(self, handles: Sequence[Any]) -> None:
        """Has tasks save and end; those that wait do not start."""
