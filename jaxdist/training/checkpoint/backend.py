"""Writes and reads arrays with Orbax; imported when it is used, since Orbax takes long to import."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # type: ignore[import-untyped]

from jaxdist.training.checkpoint import manifest
from jaxdist.training.checkpoint.errors import CheckpointError, reason

# Orbax logs each failure with several stack traces; here the caller gets every failure as an exception.
logging.getLogger('absl').addFilter(lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname)


class _Handler(ocp.CompositeCheckpointHandler):
    """Writes the manifest once the arrays are complete, before the folder gets its final name; in process 0 only."""

    def __init__(self) -> None:
        super().__init__(**{manifest.ARRAYS: _array_handler()})
        self.description: dict[str, Any] = {}

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        manifest.write(Path(directory), self.description)


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    """Writes arrays; in several processes each writes a part of what is replicated.

    On one process that gains nothing, and slicing would compile a program for each shape and part.
    """
    if jax.process_count() > 1:
        return ocp.PyTreeCheckpointHandler()
    whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, whole))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Args(ocp.args.Composite):
    pass


class Saver:
    """Writes checkpoints in the background, one at a time; the error of a save is raised by the next call."""

    def __init__(self) -> None:
        self._handler = _Handler()
        # The folder is created before `save` returns, so that a failure is raised there and not by the next save.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        self._saver = ocp.AsyncCheckpointer(self._handler, async_options=options)

    def save(self, folder: Path, arrays: Mapping[str, jax.Array], description: dict[str, Any]) -> None:
        """Starts writing `arrays` and the manifest, and returns once the arrays are copied to the host."""
        self.wait()
        self._handler.description = description
        full = {name: x for name, x in arrays.items() if x.size}  # Orbax rejects arrays without elements
        self._saver.save(folder, args=_Args(**{manifest.ARRAYS: ocp.args.PyTreeSave(full)}))

    def wait(self) -> None:
        """Waits for the running save."""
        self._saver.wait_until_finished()

    def close(self) -> None:
        """Waits for the running save, and ends Orbax's threads."""
        self._saver.close()


def read_arrays(folder: Path, structs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns the arrays of the checkpoint in `folder` by name, sharded as in `structs`, without verifying them.

    >>> read_arrays(Path('nowhere'), {})
    Traceback (most recent call last):
    jaxdist.training.checkpoint.errors.CheckpointError: cannot read nowhere, although its files are intact: ...
    """
    full = {name: struct for name, struct in structs.items() if struct.size}
    arguments = ocp.args.PyTreeRestore(full, restore_args=ocp.checkpoint_utils.construct_restore_args(full))
    try:
        arrays = ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / manifest.ARRAYS), args=arguments)
    except Exception as error:
        raise CheckpointError(f'cannot read {folder}, although its files are intact: {reason(error)}') from error
    return {name: arrays[name] if name in full else _empty(struct) for name, struct in structs.items()}


def _empty(struct: jax.ShapeDtypeStruct) -> jax.Array:
    data = np.zeros(struct.shape, struct.dtype)
    return jax.make_array_from_callback(struct.shape, struct.sharding, lambda index: data[index])
