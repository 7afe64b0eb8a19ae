"""The checkpoints of one folder: saved in the background, verified and if need be set aside on loading."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax

from jaxdist.core.errors import InputError
from jaxdist.training.checkpoint import loading, manifest
from jaxdist.training.checkpoint.backend import TEMPORARY, Saver
from jaxdist.training.checkpoint.errors import CheckpointError, DamageError, why


class Restored(NamedTuple):
    """What `Checkpoints.restore` found.

    `damaged` has a pair (folder in which it now lies, reason) for each newer checkpoint that was set aside.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    damaged: list[tuple[Path, str]]


class Checkpoints:
    """The checkpoints in one folder, as a context manager: leaving it waits for the last save.

    Entering makes the folder and removes what a killed save left there, so hold `lock` meanwhile. Reading
    (`steps`, `meta`, `restore`) works without entering. In a run of several processes every process makes the
    same calls, on a folder that all of them see; process 0 alone renames and removes.

    Args:
        folder: where the checkpoints lie, one folder a step.
        keep: how many of the newest stay; older ones are removed after a good save. With 1 there is nothing
            to go back to when that one is damaged.

    >>> import tempfile
    >>> state = {'w': jax.numpy.arange(3.0)}
    >>> target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
    ...     checkpoints.save(10, state, {'lr': 0.1})
    ...     found = checkpoints.restore(target)
    >>> found.step, found.state['w'].tolist(), found.meta, found.damaged
    (10, [0.0, 1.0, 2.0], {'lr': 0.1}, [])
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 1:
            raise InputError(f'keep={keep}: at least 1 checkpoint must stay')
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._saver: Saver | None = None
        self._pending: int | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f'cannot make the folder {self.folder}: {why(error)}') from error
        self._clean()
        self._saver = Saver()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except CheckpointError as late:
            if error is None:
                raise
            error.add_note(str(late))
        finally:
            if self._saver is not None:
                self._saver.close()
            self._saver = None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Begins to write `state`, a pytree of arrays, and returns; its buffers may be donated at once.

        Waits for the save before, if that still runs. Arrays and manifest appear together, by one rename.

        Raises:
            CheckpointError: the save before failed (this one was not begun, and can be tried again), this one
                cannot begin, or `step` is not above the newest checkpoint.
            TypeError: a leaf is no array that can be stored, or `meta` would come back changed from JSON.
        """
        if self._saver is None:
            raise RuntimeError('save needs an opened folder: with Checkpoints(folder) as checkpoints: ...')
        self.wait()
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise CheckpointError(f'cannot save step {step} in {self.folder}: step {newest} is there already')
        with jax.transfer_guard('allow'):  # a training loop forbids transfers that nobody asked for
            self._begin(step, manifest.named(state), meta)

    def wait(self) -> None:
        """Returns when nothing is being written any more; raises CheckpointError if the last save failed."""
        if self._pending is not None:
            self._attempt(self._pending, lambda saver: saver.wait())
            self._pending = None
            self._prune()

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending, without one that is being written."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal())

    def meta(self, step: int | None = None) -> dict[str, Any] | None:
        """Returns the meta of `step`, or of the newest readable checkpoint; None where there is none at all.

        Raises:
            CheckpointError: none of the manifests can be read.
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
        """Returns the newest good checkpoint, laid out as `target` says; None if the folder never had one.

        A damaged one is renamed to `damaged-<step>-<n>`, and the one before is tried.

        Args:
            target: the state as a pytree of `jax.ShapeDtypeStruct` with shardings (or arrays), on any mesh; or a
                function that makes it from the meta of the checkpoint that is tried.

        Raises:
            MismatchError: leaves differ from the checkpoint's in name, shape or dtype. Nothing is set aside.
            CheckpointError: there are checkpoints, and all are damaged.
        """
        self.wait()
        if not callable(target):
            loading.checked(target)  # before any checkpoint is looked at
        damaged: list[tuple[Path, str]] = []
        while (step := loading.from_first(max(self.steps(), default=-1))) >= 0:
            try:
                folder = self.folder / str(step)
                wanted = target(manifest.read(folder, step).meta) if callable(target) else target
                with jax.transfer_guard('allow'):
                    meta, values = loading.load(folder, step, loading.checked(wanted))
            except DamageError as damage:
                damaged.append((self._set_aside(step), str(damage)))
                continue
            return Restored(step, jax.tree.unflatten(jax.tree.structure(wanted), values), meta, damaged)
        self._refuse_to_start_afresh(dict(damaged))
        return None

    def _begin(self, step: int, leaves: Mapping[str, Any], meta: dict[str, Any]) -> None:
        arrays = {name: manifest.stored(name, leaf) for name, leaf in leaves.items()}
        description = manifest.describe(step, meta, leaves, arrays)
        self._attempt(step, lambda saver: saver.save(self.folder / str(step), arrays, description))
        self._pending = step

    def _attempt(self, step: int, call: Callable[[Saver], None]) -> None:
        assert self._saver is not None
        try:
            call(self._saver)
        except Exception as error:
            self._pending = None
            self._clean()
            raise CheckpointError(f'step {step} was not saved in {self.folder}: {why(error)}') from error

    def _prune(self) -> None:
        if jax.process_index() == 0:
            for step in self.steps()[: -self.keep]:
                # Renamed first: a removal that is cut short must not look like a checkpoint.
                old = (self.folder / str(step)).rename(self.folder / f'{step}{TEMPORARY}')
                shutil.rmtree(old, ignore_errors=True)

    def _clean(self) -> None:
        if jax.process_index() == 0:
            for left in self.folder.glob(f'*{TEMPORARY}*'):
                shutil.rmtree(left, ignore_errors=True)

    def _set_aside(self, step: int) -> Path:
        n = 0
        while (self.folder / f'damaged-{step}-{n}').exists():
            n += 1
        aside = self.folder / f'damaged-{step}-{loading.from_first(n)}'
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(aside)
        return aside

    def _refuse_to_start_afresh(self, reasons: Mapping[Path, str]) -> None:
        lost = sorted(self.folder.glob('damaged-*'))
        if lost:
            each = '; '.join(f'{path.name}: {reasons.get(path, "set aside before")}' for path in lost)
            raise CheckpointError(
                f'every checkpoint in {self.folder} is damaged ({each}); to start afresh, remove them'
            )
