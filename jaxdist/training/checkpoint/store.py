"""The checkpoints of one folder: saved in the background, verified on loading; damaged ones are set aside."""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax

from jaxdist import cluster
from jaxdist.core.errors import InputError
from jaxdist.training.checkpoint import loading, manifest
from jaxdist.training.checkpoint.errors import CheckpointError, DamageError, reason

if TYPE_CHECKING:
    from jaxdist.training.checkpoint.backend import Saver

TEMPORARY = '.orbax-checkpoint-tmp'
"""Part of the name of a folder that is not complete; Orbax's."""
STEP = re.compile('0|[1-9][0-9]*')
"""The names of complete checkpoints."""
INCOMPLETE = re.compile(rf'\d+{re.escape(TEMPORARY)}.*')
"""The names of such folders."""


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
        step: the checkpoint's step.
        state: the state, verified.
        meta: the JSON data that was saved with it.
        damaged: for each newer checkpoint, which was damaged and set aside, its folder now and the reason.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    damaged: list[tuple[Path, str]]


class Checkpoints:
    """The checkpoints in one folder, as a context manager: leaving it waits for the last save.

    Entering creates the folder and removes incomplete saves of killed processes, so the caller must have `lock`ed the
    folder. Reading (`steps`, `meta`, `restore`) works without entering. A folder, or a checkpoint in it, that is a
    symbolic link is refused: the target would be changed, and who made the folder chooses the target. In a run of
    several processes every process makes the same calls, on a shared folder; only process 0 renames and removes.

    Args:
        folder: the folder of the checkpoints, which has one folder per step.
        keep: how many of the newest checkpoints are kept; older ones are removed after a successful save, if they have
            their manifest: other folders are never removed. With 1 there is no earlier checkpoint to restore if that
            one is damaged.

    >>> import tempfile
    >>> state = {'w': jax.numpy.arange(3.0)}
    >>> target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
    ...     checkpoints.save(10, state, {'lr': 0.1})
    ...     restored = checkpoints.restore(target)
    >>> restored.step, restored.state['w'].tolist(), restored.meta, restored.damaged
    (10, [0.0, 1.0, 2.0], {'lr': 0.1}, [])
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 1:
            raise InputError(f'keep={keep}: at least 1 checkpoint must be kept')
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._saver: Saver | None = None
        self._pending: int | None = None

    def __enter__(self) -> Self:
        from jaxdist.training.checkpoint.backend import Saver

        refuse_link(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f'cannot make the folder {self.folder}: {reason(error)}') from error
        self._clean()
        self._saver = Saver()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and jax.process_count() > 1:
            return  # a save ends when all processes have written, and the others may not come: this one must leave
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # must not hide the error that ended the block
        finally:
            if self._saver is not None:
                self._saver.close()
            self._saver = None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving `state`, a pytree of arrays, and returns; its buffers may be donated at once.

        Waits for the previous save first. Arrays and manifest appear together, by one rename.

        Raises:
            CheckpointError: the previous save failed (this one was not started, and can be retried), this one cannot
                start, or `step` is not above the newest checkpoint.
            TypeError: a leaf is no array that can be stored, or `meta` changes when it is written as JSON and read.
        """
        if self._saver is None:
            raise RuntimeError('save must be called inside the context: with Checkpoints(folder) as checkpoints: ...')
        self.wait()
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise CheckpointError(f'cannot save step {step} in {self.folder}: step {newest} is there already')
        with jax.transfer_guard('allow'):  # a training loop forbids implicit transfers
            self._begin(step, manifest.named(state), meta)

    def wait(self) -> None:
        """Waits for the running save.

        Raises:
            CheckpointError: it failed.
        """
        if self._pending is not None:
            self._attempt(self._pending, lambda saver: saver.wait())
            self._pending = None
            self._prune()

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending; one that is being written does not count.

        A folder without a manifest counts as a damaged one.

        Raises:
            CheckpointError: the folder or one of the checkpoints is a symbolic link.
        """
        refuse_link(self.folder)
        if not self.folder.is_dir():
            return []
        entries = [entry for entry in self.folder.iterdir() if STEP.fullmatch(entry.name)]
        for entry in entries:
            refuse_link(entry)
        return sorted(int(entry.name) for entry in entries)

    def meta(self, step: int | None = None) -> dict[str, Any] | None:
        """Returns the meta of `step`, or of the newest readable checkpoint; None if there are no checkpoints.

        Raises:
            CheckpointError: no manifest can be read.
        """
        reasons = []
        for each in reversed(self.steps()) if step is None else [step]:
            try:
                return manifest.read(self.folder / str(each), each).meta
            except DamageError as damage:
                reasons.append(f'step {each}: {damage}')
        if reasons:
            raise CheckpointError(f'no checkpoint can be read in {self.folder}: {"; ".join(reasons)}')
        return None

    def restore(self, target: Any) -> Restored | None:
        """Returns the newest intact checkpoint, sharded as in `target`; None if the folder never had one.

        A damaged checkpoint is renamed to `damaged-<step>-<n>`, and the previous one is tried.

        Args:
            target: the state as a pytree of `jax.ShapeDtypeStruct` with shardings (or arrays), on any mesh; or a
                function from the meta of the checkpoint to this pytree.

        Raises:
            MismatchError: leaves differ from the checkpoint's in name, shape or dtype. Nothing is set aside.
            CheckpointError: there are checkpoints, and all are damaged.
        """
        self.wait()
        if not callable(target):
            loading.checked(target)  # an impossible target must not set checkpoints aside
        damaged: list[tuple[Path, str]] = []
        while (step := cluster.agree(max(self.steps(), default=-1))) >= 0:
            try:
                folder = self.folder / str(step)
                shapes = target(manifest.read(folder, step).meta) if callable(target) else target
                with jax.transfer_guard('allow'):
                    meta, values = loading.load(folder, step, loading.checked(shapes))
            except DamageError as damage:
                damaged.append((self._set_aside(step), str(damage)))
                continue
            return Restored(step, jax.tree.unflatten(jax.tree.structure(shapes), values), meta, damaged)
        self._refuse_restart(dict(damaged))
        return None

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, to go on from an earlier one."""
        self.wait()
        self._remove([each for each in self._ours() if each > step])

    def _begin(self, step: int, leaves: Mapping[str, Any], meta: dict[str, Any]) -> None:
        arrays = {name: manifest.stored(name, leaf) for name, leaf in leaves.items()}
        description = manifest.describe(step, meta, leaves, arrays)
        self._attempt(step, lambda saver: saver.save(self.folder / str(step), arrays, description))
        self._pending = step

    def _attempt(self, step: int, call: Callable[['Saver'], None]) -> None:
        assert self._saver is not None
        try:
            call(self._saver)
        except Exception as error:
            self._pending = None
            self._clean()
            raise CheckpointError(f'step {step} was not saved in {self.folder}: {reason(error)}') from error

    def _prune(self) -> None:
        self._remove(self._ours()[: -self.keep])

    def _ours(self) -> list[int]:
        """The steps of the checkpoints; a folder that happens to be named by digits is not ours to remove."""
        return [step for step in self.steps() if manifest.is_of(self.folder / str(step), step)]

    def _remove(self, steps: Sequence[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                # Renamed first: an interrupted removal must not look like a checkpoint.
                old = (self.folder / str(step)).rename(self.folder / f'{step}{TEMPORARY}')
                shutil.rmtree(old, ignore_errors=True)

    def _clean(self) -> None:
        if jax.process_index() == 0:
            for incomplete in self.folder.glob(f'*{TEMPORARY}*'):
                refuse_link(incomplete)  # Orbax would write in its target
                if INCOMPLETE.fullmatch(incomplete.name):
                    shutil.rmtree(incomplete, ignore_errors=True)

    def _set_aside(self, step: int) -> Path:
        n = 0
        while os.path.lexists(self.folder / f'damaged-{step}-{n}'):
            n += 1
        aside = self.folder / f'damaged-{step}-{cluster.agree(n)}'
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(aside)
        return aside

    def _refuse_restart(self, reasons: Mapping[Path, str]) -> None:
        """Raises CheckpointError if there are damaged checkpoints: training from step 0 would lose them silently."""
        damaged = sorted(self.folder.glob('damaged-*'))
        if damaged:
            each = '; '.join(f'{path.name}: {reasons.get(path, "set aside earlier")}' for path in damaged)
            raise CheckpointError(
                f'every checkpoint in {self.folder} is damaged ({each}); to start from step 0, remove them'
            )


def refuse_link(path: Path) -> None:
    """Refuses a symbolic link, whose target would be changed.

    Raises:
        CheckpointError: it is one.

    >>> refuse_link(Path('nowhere'))
    """
    if path.is_symlink():
        raise CheckpointError(
            f'{path} is a symbolic link, and checkpoints are written and removed in a folder of the run alone: '
            'put the folder in its place'
        )
