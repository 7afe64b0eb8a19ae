"""Orbax, which writes and reads the arrays: the only file here that imports it."""

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
from jaxdist.training.checkpoint.errors import CheckpointError, why

TEMPORARY = '.orbax-checkpoint-tmp'

# Orbax logs each failure with several stack traces; here every failure reaches the caller as an exception.
logging.getLogger('absl').addFilter(lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname)


class _Handler(ocp.CompositeCheckpointHandler):
    """Adds the manifest when the arrays are complete, before the folder gets its name; in process 0 alone."""

    def __init__(self) -> None:
        super().__init__(**{manifest.ARRAYS: ocp.PyTreeCheckpointHandler()})
        self.description: dict[str, Any] = {}

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        manifest.write(Path(directory), self.description)


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Args(ocp.args.Composite):
    pass


class Saver:
    """Writes checkpoints in the background, one at a time; errors of one come out of the next call."""

    def __init__(self) -> None:
        self._handler = _Handler()
        # The folder is made before `save` returns, so one that cannot be made is known at once.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        self._saver = ocp.AsyncCheckpointer(self._handler, async_options=options)

    def save(self, folder: Path, arrays: Mapping[str, jax.Array], description: dict[str, Any]) -> None:
        """Begins to write `arrays`, once they are copied to the host, and the manifest."""
        self.wait()
        self._handler.description = description
        full = {name: x for name, x in arrays.items() if x.size}  # Orbax refuses arrays without elements
        self._saver.save(folder, args=_Args(**{manifest.ARRAYS: ocp.args.PyTreeSave(full)}))

    def wait(self) -> None:
        """Returns when nothing is being written."""
        self._saver.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads."""
        self._saver.close()


def read_arrays(folder: Path, structs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns the arrays of the checkpoint in `folder` by name, laid out as `structs` say, unverified.

    >>> read_arrays(Path('nowhere'), {})
    Traceback (most recent call last):
    jaxdist.training.checkpoint.errors.CheckpointError: cannot read nowhere, although its files are whole: ...
    """
    full = {name: struct for name, struct in structs.items() if struct.size}
    wanted = ocp.args.PyTreeRestore(full, restore_args=ocp.checkpoint_utils.construct_restore_args(full))
    try:
        arrays = ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / manifest.ARRAYS), args=wanted)
    except Exception as error:
        raise CheckpointError(f'cannot read {folder}, although its files are whole: {why(error)}') from error
    return {name: arrays[name] if name in full else _empty(struct) for name, struct in structs.items()}


def _empty(struct: jax.ShapeDtypeStruct) -> jax.Array:
    data = np.zeros(struct.shape, struct.dtype)
    return jax.make_array_from_callback(struct.shape, struct.sharding, lambda index: data[index])
