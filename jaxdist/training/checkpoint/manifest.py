"""The manifest of a checkpoint: shape, dtype and digest of each leaf, the sha256 of each file, and the meta."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.training.checkpoint.digests import digests
from jaxdist.training.checkpoint.errors import CheckpointError, DamageError, MismatchError, reason

FORMAT = 1
FILE = 'manifest.json'
ARRAYS = 'arrays'


class Kind(NamedTuple):
    """A leaf's shape and the name of its dtype, which for typed keys includes the generator."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f'{self.dtype}{list(self.shape)}'


class Manifest(NamedTuple):
    """A verified manifest.

    Attributes:
        meta: the JSON data that was saved with the state.
        kinds: the shape and dtype of each leaf, by name.
        digests: the digest of each leaf's data, by name.
        files: the sha256 of each file, by its path in the folder of arrays.
    """

    meta: dict[str, Any]
    kinds: dict[str, Kind]
    digests: dict[str, str]
    files: dict[str, str]


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of `tree` by name, which is their path.

    Raises:
        InputError: two leaves have the same path.

    >>> named({'w': 1.0, 'layers': [2.0, None]})
    {"state['layers'][0]": 2.0, "state['w']": 1.0}
    """
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {f'state{jax.tree_util.keystr(path)}': leaf for path, leaf in pairs}
    if len(leaves) < len(pairs):
        raise InputError('two leaves of the state have the same path')
    return leaves


def is_key(leaf: Any) -> bool:
    """Returns whether `leaf` is an array of typed keys.

    >>> is_key(jax.random.key(0)), is_key(jax.random.key_data(jax.random.key(0)))
    (True, False)
    """
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def kind_of(leaf: Any) -> Kind:
    """Returns the kind of an array or `jax.ShapeDtypeStruct`.

    >>> print(kind_of(jnp.zeros((2, 3))), kind_of(jax.random.key(0)))
    float32[2, 3] key<fry>[]
    """
    return Kind(tuple(leaf.shape), str(leaf.dtype))


def stored(name: str, leaf: Any) -> jax.Array:
    """Returns the array to write for `leaf`: of typed keys their data, else `leaf` itself.

    Raises:
        TypeError: `leaf` is no `jax.Array`, or has a dtype that cannot be stored.
        InputError: its buffer was donated.

    >>> stored('state', jax.random.key(7)).tolist()
    [0, 7]
    """
    if not isinstance(leaf, jax.Array):
        raise TypeError(f'{name} is of type {type(leaf).__name__}: a checkpoint stores only JAX arrays')
    if leaf.is_deleted():
        raise InputError(f'{name} was donated to a computation: save the result of that computation')
    if is_key(leaf):
        return jax.random.key_data(leaf)
    if _bits(leaf.dtype) not in (8, 16, 32, 64):
        stored = 'bool, and integers and floats of 8 to 64 bits, real or complex'
        raise TypeError(f'{name} is {leaf.dtype}: a checkpoint stores {stored}')
    return leaf


def describe(
    step: int, meta: dict[str, Any], state: Mapping[str, Any], arrays: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """Returns the manifest's content, save for the files: step, meta, and the shape, dtype and digest of each leaf.

    Args:
        step: the checkpoint's step.
        meta: JSON data.
        state: the leaves by name.
        arrays: the arrays that are written for them, from `stored`.

    >>> x = {'state': jnp.zeros(2)}
    >>> sorted(describe(3, {}, x, x))
    ['format', 'leaves', 'meta', 'step']
    """
    _check_meta(meta)
    digest_of = digests(arrays)
    leaves = {name: {**kind_of(leaf)._asdict(), 'digest': digest_of[name]} for name, leaf in state.items()}
    return {'format': FORMAT, 'step': step, 'meta': meta, 'leaves': leaves}


def write(folder: Path, description: dict[str, Any]) -> None:
    """Writes the manifest of the finished arrays in `folder`, with a digest of each file and of itself.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder), describe(3, {'lr': 0.1}, {}, {}))
    ...     read(Path(folder), 3).meta
    {'lr': 0.1}
    """
    paths = sorted(path for path in (folder / ARRAYS).rglob('*') if path.is_file())
    names = (path.relative_to(folder / ARRAYS).as_posix() for path in paths)
    body = {**description, 'files': dict(zip(names, _file_digests(paths), strict=True))}
    (folder / FILE).write_text(json.dumps({**body, 'sha256': _sha256(body)}), encoding='utf-8')


def read(folder: Path, step: int) -> Manifest:
    """Returns the manifest of the checkpoint in `folder`.

    Raises:
        DamageError: it is missing, unreadable or altered, or of another step.
        CheckpointError: its format is another, or the folder may not be read.

    >>> read(Path('nowhere'), 3)
    Traceback (most recent call last):
    jaxdist.training.checkpoint.errors.DamageError: the manifest is missing
    """
    try:
        body = json.loads((folder / FILE).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise DamageError('the manifest is missing') from None
    except PermissionError as error:
        raise CheckpointError(f'cannot read {folder}: {reason(error)}') from error
    except (OSError, ValueError) as error:
        raise DamageError(f'the manifest is unreadable: {reason(error)}') from error
    if not isinstance(body, dict) or body.pop('sha256', None) != _sha256(body):
        raise DamageError('the manifest was altered: its sha256 is wrong')
    if body['format'] != FORMAT:
        raise CheckpointError(f'{folder} has format {body["format"]}; this program reads format {FORMAT}')
    if body['step'] != step:
        raise DamageError(f'the manifest is of step {body["step"]}')
    leaves = body['leaves']
    kinds = {name: Kind(tuple(leaf['shape']), leaf['dtype']) for name, leaf in leaves.items()}
    return Manifest(body['meta'], kinds, {n: leaf['digest'] for n, leaf in leaves.items()}, body['files'])


def is_of(folder: Path, step: int) -> bool:
    """Whether `folder` has the manifest of a checkpoint of this step.

    >>> is_of(Path('nowhere'), 3)
    False
    """
    try:
        read(folder, step)
    except CheckpointError:
        return False
    return True


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Checks the files of the arrays in `folder` against their sha256.

    Raises:
        DamageError: a file is missing, unreadable or altered.
        CheckpointError: the folder may not be read.

    >>> check_files(Path('nowhere'), {'d/0': '00'})
    Traceback (most recent call last):
    jaxdist.training.checkpoint.errors.DamageError: arrays/d/0 is missing
    """
    paths = {f'{ARRAYS}/{name}': digest for name, digest in files.items()}
    if lost := [path for path in paths if not (folder / path).is_file()]:
        raise DamageError(f'{lost[0]} is missing')
    try:
        actual = _file_digests(folder / path for path in paths)
    except PermissionError as error:
        raise CheckpointError(f'cannot read {folder}: {reason(error)}') from error
    except OSError as error:
        raise DamageError(f'a file is unreadable: {reason(error)}') from error
    if wrong := [path for path, digest in zip(paths, actual, strict=True) if digest != paths[path]]:
        raise DamageError(f'{wrong[0]} was altered')


def check_fit(kinds: Mapping[str, Kind], target: Mapping[str, Kind], folder: Path) -> None:
    """Checks that the leaves of the checkpoint in `folder` are those of the target.

    Raises:
        MismatchError: they are not; the message lists every leaf that differs, up to twenty.

    >>> check_fit({'state': Kind((2,), 'int8')}, {'state': Kind((2,), 'int16')}, Path('runs/5'))
    Traceback (most recent call last):
    jaxdist.training.checkpoint.errors.MismatchError: the checkpoint runs/5 has another state:
      state: int8[2] in the checkpoint, int16[2] requested
    """
    pairs = {name: (kinds.get(name), target.get(name)) for name in {**target, **kinds}}
    lines = [
        f'  {name}: {saved or "missing"} in the checkpoint, {requested or "not"} requested'
        for name, (saved, requested) in pairs.items()
        if saved != requested
    ]
    if lines:
        more = [f'  and {len(lines) - 20} more'] if len(lines) > 20 else []
        raise MismatchError('\n'.join([f'the checkpoint {folder} has another state:', *lines[:20], *more]))


def _bits(dtype: Any) -> int:
    if dtype == jnp.bool_:
        return 8
    if jnp.issubdtype(dtype, jnp.integer):
        return int(jnp.iinfo(dtype).bits)
    return int(jnp.finfo(dtype).bits) if jnp.issubdtype(dtype, jnp.inexact) else 0  # of complex numbers, half of them


def _check_meta(meta: dict[str, Any]) -> None:
    try:
        same = json.loads(json.dumps(meta, allow_nan=False)) == meta
    except (TypeError, ValueError) as error:
        raise TypeError(f'meta must be JSON: {error}') from error
    if not same:
        raise TypeError('meta changes when it is written as JSON and read: use str keys, and lists for tuples')


def _file_digests(paths: Iterable[Path]) -> list[str]:
    """The sha256 of each file."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_file_digest, paths))


def _file_digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _sha256(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
