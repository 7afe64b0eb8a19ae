"""Meshes, and which axis cuts which parameter: rules by path, loud about what does not fit."""

import re
from collections.abc import Mapping, Sequence
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


def follow(state: Any, params: Any, param_specs: Any) -> Any:
    """Specs for an optimiser's state: a leaf that belongs to a parameter is cut as that parameter is; the rest is
    replicated.

    A leaf belongs to a parameter if its path ends with the parameter's and its last dims are the parameter's: moments,
    residuals and queues [k, ...] alike. Left alone, the compiler would replicate every one of them.

    >>> shape = jax.ShapeDtypeStruct((8, 4), 'float32')
    >>> queue = jax.ShapeDtypeStruct((3, 8, 4), 'float32')
    >>> follow({'queue': {'up': queue}}, {'up': shape}, {'up': jax.P(None, 'model')})
    {'queue': {'up': P(None, None, 'model')}}
    """
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    cuts = jax.tree.leaves(param_specs, is_leaf=is_spec)
    known = [(path, p.shape, cut) for (path, p), cut in zip(flat, cuts, strict=True)]
    known.sort(key=lambda owner: -len(owner[0]))  # of 'b' and 'a/b', the longer path owns 'mu/a/b'

    def spec(path: KeyPath, leaf: Any) -> PartitionSpec:
        for owner, shape, cut in known:
            extra = len(leaf.shape) - len(shape)
            if path[len(path) - len(owner) :] == owner and extra >= 0 and leaf.shape[extra:] == shape:
                return PartitionSpec(*(None,) * extra, *cut) if cut else PartitionSpec()
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, state)
