"""Meshes, and which axis cuts which parameter: rules by path, loud about what does not fit."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

KeyPath = tuple[Any, ...]
"""A leaf's place in a pytree, as `jax.tree_util` gives it."""

Rules = Sequence[tuple[str, tuple[str | None, ...]]]
"""(regular expression that must match a parameter's whole path, one mesh axis or None for each dim)."""


def make(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with these axes and sizes over the first devices; the compiler decides on every axis that is not made
    manual.

    Raises:
        ValueError: an axis is smaller than 1, or there are fewer devices than the mesh needs.

    >>> dict(make({'workers': 4, 'model': 2}).shape)
    {'workers': 4, 'model': 2}
    """
    devices = jax.devices() if devices is None else devices
    need = 1
    for name, n in axes.items():
        if n < 1:
            raise ValueError(f'mesh axis {name!r} has size {n}; it must be 1 or more')
        need *= n
    if need > len(devices):
        shape = ' x '.join(f'{n} {name}' for name, n in axes.items())
        raise ValueError(
            f'a mesh of {shape} needs {need} devices, and there are {len(devices)} ({devices[0].platform}). '
            f'Emulate them on CPU with --emulate (in Python: jax.config.update("jax_num_cpu_devices", {need}) '
            'before anything runs), or simulate the workers on one device with --simulate.'
        )
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=devices[:need])


def path_text(path: KeyPath) -> str:
    """A leaf's path as rules and messages write it: keys joined by `/`.

    >>> jax.tree_util.tree_flatten_with_path({'a': [1]})[0][0][0]
    (DictKey(key='a'), SequenceKey(idx=0))
    >>> path_text(jax.tree_util.tree_flatten_with_path({'a': [1]})[0][0][0])
    'a/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator='/')


def specs(params: Any, rules: Rules, mesh: Mesh | AbstractMesh | None) -> Any:
    """One `PartitionSpec` for each leaf of `params`, by the first rule whose expression matches its path; else
    replicated.

    Axes that the mesh does not have are left out, so that a model's rules serve any mesh; without a mesh nothing is
    cut.

    Raises:
        ValueError: a rule matches no leaf, has more dims than the leaf, or its axis does not divide the dim.

    >>> mesh = make({'workers': 2, 'model': 2})
    >>> specs({'up': jax.ShapeDtypeStruct((8, 4), 'float32')}, [('up', (None, 'model'))], mesh)
    {'up': P(None, 'model')}
    """
    axes = dict(mesh.shape) if mesh is not None else {}
    unused = {pattern for pattern, _ in rules}

    def spec(path: KeyPath, leaf: Any) -> PartitionSpec:
        name = path_text(path)
        for pattern, dims in rules:
            if re.fullmatch(pattern, name):
                unused.discard(pattern)
                return _fitting(name, leaf.shape, pattern, dims, axes)
        return PartitionSpec()

    out = jax.tree_util.tree_map_with_path(spec, params)
    if unused:
        names = [path_text(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        raise ValueError(f'sharding rules that match no parameter: {sorted(unused)}; the parameters are {names}')
    return out


def _fitting(
    name: str, shape: tuple[int, ...], pattern: str, dims: tuple[str | None, ...], axes: Mapping[str, int]
) -> PartitionSpec:
    """The rule's spec for this leaf, once it is sure to fit."""
    if len(dims) > len(shape):
        raise ValueError(f'rule {pattern!r} names {len(dims)} dims, and parameter {name!r} has {len(shape)}: {shape}')
    for dim, (axis, n) in enumerate(zip(dims, shape, strict=False)):
        if axis is not None and n % axes.get(axis, 1):
            raise ValueError(
                f'dim {dim} of parameter {name!r} {shape} has {n} entries, which mesh axis {axis!r} '
                f'of size {axes[axis]} does not divide (rule {pattern!r}); change the size of either'
            )
    kept = [axis if axes.get(axis or '', 1) > 1 else None for axis in dims]
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


_CUTS: ContextVar[Any] = ContextVar('cuts', default=None)


@contextmanager
def cut_as(param_specs: Any) -> Iterator[None]:
    """While an update is traced inside: how parameters, and gradients with them, are cut over the mesh's other axes.

    A type does not tell it, and neither `init` nor `update` of an optax transformation has a place for it.

    >>> with cut_as({'up': jax.P(None, 'model')}):
    ...     cuts({'up': jax.numpy.ones((8, 4))})
    [P(None, 'model')]
    """
    token = _CUTS.set(param_specs)
    try:
        yield
    finally:
        _CUTS.reset(token)


def cuts(params: Any) -> list[PartitionSpec] | None:
    """How each leaf of a tree like the parameters is cut, as `cut_as` has it; None if the mesh has no other axes.

    Raises:
        ValueError: the tree is not like the parameters.

    >>> cuts({'up': jax.numpy.ones((8, 4))})
    """
    specs = _CUTS.get()
    if specs is None:
        return None
    found: list[PartitionSpec] = jax.tree.leaves(specs, is_leaf=_is_spec)
    if len(found) != len(jax.tree.leaves(params)):
        raise ValueError(
            f'how {len(found)} parameters are cut over the mesh is known, and the tree has '
            f'{len(jax.tree.leaves(params))} leaves; on a mesh with other axes a part of them cannot be averaged alone'
        )
    return found


@contextmanager
def part_of(members: Sequence[int]) -> Iterator[None]:
    """Inside `cut_as`, for the part of the parameters with these leaves: `cuts` then tells how those are cut.

    >>> with cut_as([jax.P('model'), jax.P()]), part_of((1,)):
    ...     cuts({'a': None, 'b': jax.numpy.ones(3)})
    [P()]
    """
    specs = _CUTS.get()
    leaves = jax.tree.leaves(specs, is_leaf=_is_spec)
    with cut_as(None if specs is None else [leaves[i] for i in members]):
        yield


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def follow(state: Any, params: Any, param_specs: Any, sizes: Mapping[str, int]) -> Any:
    """Specs for an optimiser's state: a leaf that belongs to a parameter is cut as that parameter is; the rest is
    replicated.

    A leaf belongs to a parameter if its path ends with the parameter's and its last dims are the parameter's: moments,
    residuals and queues [k, ...] alike. One of another shape whose first dim counts the parameter's shards has
    something for each of them. Left alone, the compiler would replicate every one of them.

    Args:
        state: shapes.
        params: shapes.
        param_specs: how the parameters are cut.
        sizes: the mesh's axes and their sizes.

    >>> of = lambda *shape: jax.ShapeDtypeStruct(shape, 'float32')
    >>> state = {'queue': {'up': of(3, 8, 4)}, 'factor': {'up': of(2, 4, 1)}}
    >>> follow(state, {'up': of(8, 4)}, {'up': jax.P(None, 'model')}, {'model': 2})
    {'factor': {'up': P('model',)}, 'queue': {'up': P(None, None, 'model')}}
    """
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    each = jax.tree.leaves(param_specs, is_leaf=_is_spec)
    known = [(path, p.shape, cut) for (path, p), cut in zip(flat, each, strict=True)]
    known.sort(key=lambda owner: -len(owner[0]))  # of 'b' and 'a/b', the longer path owns 'mu/a/b'

    def spec(path: KeyPath, leaf: Any) -> PartitionSpec:
        for owner, shape, cut in known:
            if path[len(path) - len(owner) :] != owner or not cut:
                continue
            extra = len(leaf.shape) - len(shape)
            if extra >= 0 and leaf.shape[extra:] == shape:
                return PartitionSpec(*(None,) * extra, *cut)
            axes = tuple(sorted(axis for axis in cut if axis is not None))
            if leaf.shape[:1] == (math.prod(sizes[axis] for axis in axes),):
                return PartitionSpec(axes)
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, state)
