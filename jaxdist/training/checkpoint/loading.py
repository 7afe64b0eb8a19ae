"""Loads one checkpoint and verifies it; the processes of a run all come to the same verdict."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdist.core.errors import InputError
from jaxdist.training.checkpoint import backend, manifest
from jaxdist.training.checkpoint.digests import digests
from jaxdist.training.checkpoint.errors import CheckpointError, DamageError

_T = TypeVar('_T')


def load(folder: Path, step: int, target: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[dict[str, Any], list[jax.Array]]:
    """Returns the meta and the leaves, in the order of `target`, of the checkpoint in `folder`.

    Raises:
        DamageError: some of it is missing or altered.
        MismatchError: it is not what `target` asks for.

    >>> load(Path('nowhere'), 3, {})
    Traceback (most recent call last):
    jaxdist.training.checkpoint.errors.DamageError: the manifest is missing
    """
    saved = _together(lambda: manifest.read(folder, step))
    manifest.check_fit(saved.kinds, {name: manifest.kind_of(leaf) for name, leaf in target.items()}, folder)
    structs = {name: _stored_struct(leaf) for name, leaf in target.items()}
    _together(lambda: manifest.check_files(folder, saved.files if jax.process_index() == 0 else {}))
    arrays = backend.read_arrays(folder, structs)
    found = digests(arrays)
    if wrong := [name for name in target if found[name] != saved.digests[name]]:
        raise DamageError(f'the data is not what was saved, in {", ".join(wrong[:5])}')
    return saved.meta, [_typed(arrays[name], leaf) for name, leaf in target.items()]


def checked(target: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the leaves of `target` by name, after a look at whether arrays can be laid out as they say.

    >>> checked({'w': jax.ShapeDtypeStruct((3,), 'float32')})
    Traceback (most recent call last):
    TypeError: target: state['w'] must be a jax.ShapeDtypeStruct with a sharding, not ShapeDtypeStruct(...)
    """
    leaves = manifest.named(target)
    for name, leaf in leaves.items():
        if not hasattr(leaf, 'dtype') or getattr(leaf, 'sharding', None) is None:
            raise TypeError(f'target: {name} must be a jax.ShapeDtypeStruct with a sharding, not {leaf!r}')
        if not manifest.is_key(leaf) and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise CheckpointError(f'target: {name} is {leaf.dtype}, for which jax_enable_x64 must be on')
        try:
            leaf.sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise InputError(f'target: {name} cannot be laid out as asked: {error}') from None
    return leaves


def from_first(value: int) -> int:
    """Returns the `value` of process 0.

    >>> from_first(7)
    7
    """
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _together(read: Callable[[], _T]) -> _T:
    """What `read` returns; damage that one process meets is damage for all."""
    problem = None
    try:
        result = read()
    except DamageError as damage:
        problem = damage
    if jax.process_count() > 1:
        fine = multihost_utils.process_allgather(np.array(problem is None))
        if problem is None and not fine.all():
            problem = DamageError(f'process {int(np.argmin(fine))} could not read it')
    if problem is not None:
        raise problem
    return result


def _stored_struct(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    data = jax.eval_shape(jax.random.key_data, leaf) if manifest.is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _typed(array: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """`array`, or the typed keys of which it is the data."""
    if not manifest.is_key(leaf):
        return array
    impls: list[Any] = []  # only an array knows its generator, so ask inside a trace
    jax.eval_shape(lambda keys: impls.append(jax.random.key_impl(keys)), leaf)
    return jax.jit(lambda data: jax.random.wrap_key_data(data, impl=impls[0]), out_shardings=leaf.sharding)(array)
