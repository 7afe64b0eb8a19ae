"""The synchroniser's files: its arrays as checkpoints, and `rounds.jsonl`, a line for each closed round."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxdist.algorithms._fragments import pick
from jaxdist.core import files
from jaxdist.data.dataset import digest
from jaxdist.learners.messages import size_of
from jaxdist.learners.progress import Arrival, Progress, from_json, mean_loss, to_json, total_tokens, weights
from jaxdist.learners.synchroniser import Merged, Synchroniser
from jaxdist.training.checkpoint import Checkpoints

FILE = 'rounds.jsonl'


class Round(NamedTuple):
    """A closed round.

    Attributes:
        number: which of all closed rounds it is, from 1.
        fragment: its fragment.
        version: the closed rounds of the fragment, this one included.
        tokens: merged tokens so far; see `total_tokens`.
        loss: the mean loss of the merged steps, weighted as their learners.
        received: bytes of the messages.
        of: how many learners there were, arrived or not.
        digest: of the fragment's new anchor.
        at: when it closed, as `time.time()`.
        learners: for each merged learner its `learner`, `start`, `first`, `end`, `tokens`, `weight`, `loss`, `seconds`,
            `begins` and `journal`, as in `Arrival`.
        processes: the processes of each learner.
    """

    number: int
    fragment: int
    version: int
    tokens: int
    loss: float
    received: int
    of: int
    digest: str
    at: float
    learners: list[dict[str, Any]]
    processes: int = 1


def round_of(
    arrivals: Sequence[Arrival],
    progress: Progress,
    merged: Merged,
    members: Sequence[int],
    at: float,
    processes: int = 1,
) -> Round:
    """The line of a round.

    Args:
        arrivals: what was merged.
        progress: the progress after the round.
        merged: the arrays after the round.
        members: the tensors of the fragment.
        at: the time.
        processes: the processes of each learner.

    >>> import numpy as np
    >>> from jaxdist.learners.progress import counted, first_progress
    >>> arrivals = [Arrival(0, 1, 0, 0, first=0, end=4, tokens=8, message=(np.float32([2]),), loss=1.5, seconds=1.0)]
    >>> progress = counted(first_progress(2, 1), arrivals)
    >>> found = round_of(arrivals, progress, Merged(np.float32([1]), ()), members=(0,), at=10.0)
    >>> found.number, found.tokens, found.received, found.learners[0]['weight']
    (1, 8, 4, 1.0)
    """
    shares, fragment = weights(arrivals), arrivals[0].fragment
    names = ('learner', 'start', 'first', 'end', 'tokens', 'loss', 'seconds', 'begins', 'journal')
    each = [
        {**{name: getattr(arrival, name) for name in names}, 'weight': weight}
        for arrival, weight in zip(arrivals, shares, strict=True)
    ]
    return Round(
        number=progress.rounds,
        fragment=fragment,
        version=progress.versions[fragment],
        tokens=total_tokens(progress),
        loss=mean_loss(arrivals),
        received=sum(size_of(arrival.message) for arrival in arrivals),
        of=len(progress.starts),
        digest=digest(*jax.tree.leaves(pick(merged.anchor, members)))[:16],
        at=at,
        learners=each,
        processes=processes,
    )


def read_rounds(folder: Path) -> list[Round]:
    """The closed rounds; none if there is no such file. An incomplete last line is ignored.

    >>> read_rounds(Path('nowhere'))
    []
    """
    path = folder / FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Round(**json.loads(line)) for line in lines if line.endswith('\n')]


class Record:
    """The synchroniser's files, as a context manager: what a round changes is on disk before anybody gets it.

    Args:
        folder: the run's folder, which its starter has locked.
        meta: what checkpoints have beside the progress: the experiment, the data's digest, the number of learners.
        keep: how many checkpoints are kept.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], keep: int) -> None:
        self.folder, self.meta = folder, meta
        self.checkpoints = Checkpoints(folder / 'checkpoints', keep)

    def __enter__(self) -> Self:
        files.refuse_link(self.folder / FILE)
        self.checkpoints.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.checkpoints.__exit__(kind, error, trace)

    def begin(self, synchroniser: Synchroniser, first: Merged, progress: Progress) -> tuple[Merged, Progress]:
        """The newest intact checkpoint, or what a new run begins with, which is saved.

        Lines of rounds that are not in the checkpoint are dropped: these rounds close again.

        Raises:
            CheckpointError: every checkpoint is damaged.
        """
        restored = self.checkpoints.restore(_shapes(first))
        if restored is None:
            self.save(first, progress)
            return first, progress
        progress = from_json(restored.meta['progress'])
        kept = [each for each in read_rounds(self.folder) if each.number <= progress.rounds]
        files.replace(self.folder / FILE, ''.join(_line(each) for each in kept))
        return jax.device_get(restored.state), progress

    def close(self, merged: Merged, progress: Progress, line: Round) -> None:
        """Writes a closed round; returns when it is on disk."""
        files.write(self.folder / FILE, _line(line), append=True)
        self.save(merged, progress)

    def save(self, merged: Merged, progress: Progress) -> None:
        """Saves the arrays, and waits for it."""
        arrays = jax.tree.map(jnp.asarray, merged)
        self.checkpoints.save(progress.rounds, arrays, {**self.meta, 'progress': to_json(progress)})
        self.checkpoints.wait()


def _line(line: Round) -> str:
    return json.dumps(line._asdict()) + '\n'


def _shapes(tree: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)
