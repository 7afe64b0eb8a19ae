"""Loads and verifies one checkpoint; either all processes of a run accept it, or all reject it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxdist import cluster
from jaxdist.core.errors import InputError
from jaxdist.training.checkpoint import manifest
from jaxdist.training.checkpoint.digests import digests
from jaxdist.training.checkpoint.errors import CheckpointError, DamageError

_T = TypeVar('_T')


def load(folder: Path, step: int, target: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[dict[str, Any], list[jax.Array]]:
    """Returns the meta and the leaves, in the order of `target`, of the checkpoint in `folder`.

    Raises:
        DamageError: a file is missing, or files or data are altered.
        MismatchError: the leaves differ from `target` in name, shape or dtype.

    >>> load(Path('nowhere'), 3, {})
    Traceback (most recent call last):
    jaxdist.training.checkpoint.errors.DamageError: the manifest is missing
    """
    from jaxdist.training.checkpoint.backend import read_arrays

    saved = _on_all_processes(lambda: manifest.read(folder, step))
    manifest.check_fit(saved.kinds, {name: manifest.kind_of(leaf) for name, leaf in target.items()}, folder)
    structs = {name: _stored_struct(leaf) for name, leaf in target.items()}
    _on_all_processes(lambda: manifest.check_files(folder, saved.files if jax.process_index() == 0 else {}))
    arrays = read_arrays(folder, structs)
    actual = digests(arrays)
    if wrong := [name for name in target if actual[name] != saved.digests[name]]:
        raise DamageError(f'the data differs from what was saved, in {", ".join(wrong[:5])}')
    return saved.meta, [_typed(arrays[name], leaf) for name, leaf in target.items()]


def checked(target: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the leaves of `target` by name, once arrays of their dtypes and shardings are known to be possible.

    Raises:
        TypeError: a leaf has no dtype or no sharding.
        CheckpointError: a leaf has 64 bits, and `jax_enable_x64` is off.
        InputError: a sharding does not divide its leaf.

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
            raise InputError(f'target: {name} cannot be sharded as requested: {error}') from None
    return leaves


def _on_all_processes(read: Callable[[], _T]) -> _T:
    """Returns what `read` returns; damage in one process is raised in all of them."""
    problem = None
    try:
        result = read()
    except DamageError as damage:
        problem = damage
    fine = cluster.gather(problem is None, 'read')
    if problem is None and not all(fine):
        problem = DamageError(f'process {fine.index(False)} could not read it')
    if problem is not None:
        raise problem
    return result


def _stored_struct(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    data = jax.eval_shape(jax.random.key_data, leaf) if manifest.is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _typed(array: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """`array`, or where `leaf` has a key dtype the typed keys with this data."""
    if not manifest.is_key(leaf):
        return array
    impls: list[Any] = []  # `key_impl` takes arrays only, so it is called inside a trace
    jax.eval_shape(lambda keys: impls.append(jax.random.key_impl(keys)), leaf)
    return jax.jit(lambda data: jax.random.wrap_key_data(data, impl=impls[0]), out_shardings=leaf.sharding)(array)
