"""The exit codes of `jaxdist`, and whether a supervisor starts the program again."""

from typing import NamedTuple

DONE, FAILED, USAGE, UNLIKE, STUCK, PEER, ABORTED, PREEMPTED = 0, 1, 2, 65, 70, 71, 134, 143


class Exit(NamedTuple):
    """What an exit code means.

    Attributes:
        meaning: what happened.
        retry: whether the same command, started again, can go on.
    """

    meaning: str
    retry: bool


EXITS = {
    DONE: Exit('done', False),
    FAILED: Exit('the run failed: it diverged, a file cannot be written, or a mistake of ours', False),
    USAGE: Exit('the command, the config or the data are wrong', False),
    UNLIKE: Exit('the processes do not run the same experiment, or the data have changed', False),
    STUCK: Exit('a process does not go on, or its copy of the state differs', True),
    PEER: Exit('another process is gone, or did not join', True),
    ABORTED: Exit('JAX ended the process, as when process 0 is gone', True),
    PREEMPTED: Exit('stopped by SIGTERM, and saved', True),
}
"""The exit codes; others are 128 + the number of a signal."""
