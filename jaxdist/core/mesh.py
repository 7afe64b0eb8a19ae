"""The table of mesh axes, meshes made from it, and sharding rules: which axis shards which dim of a parameter."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from jaxdist.core.errors import InputError
from jaxdist.core.protocol import is_spec

KeyPath = tuple[Any, ...]
"""A leaf's place in a pytree, as `jax.tree_util` gives it."""

Rules = Sequence[tuple[str, tuple[str | None, ...]]]
"""(regular expression that must match a parameter's whole path, one mesh axis or None for each dim)."""


AxisKind = Literal['workers', 'stage', 'fsdp', 'context', 'expert', 'model']
"""The use of a mesh axis, outermost first; every axis but `workers` is inside a worker.

workers: replicas, trained by a distributed algorithm. stage: pipeline stages. fsdp: sharded parameters and state.
context: parts of a sequence. expert: experts of a layer. model: tensor parallelism.
"""

KINDS: tuple[AxisKind, ...] = get_args(AxisKind)


class Axis(NamedTuple):
    """One mesh axis: its name, its number of devices, and its use."""

    name: str
    size: int
    kind: AxisKind


def axis_table(**sizes: int) -> tuple[Axis, ...]:
    """The mesh axes in the order of `KINDS`, the last one fastest: neighbouring devices belong to one worker.

    The axis `workers` is always included, any other axis only if it has more than one device.

    Args:
        **sizes: number of devices for each kind of axis; 1 for kinds that are not given.

    Raises:
        InputError: a kind is unknown, or a size is below 1.

    >>> axis_table(model=2, workers=4)
    (Axis(name='workers', size=4, kind='workers'), Axis(name='model', size=2, kind='model'))
    """
    for kind, size in sizes.items():
        if kind not in KINDS:
            raise InputError(f'there is no mesh axis {kind!r}; the axes are {", ".join(KINDS)}')
        if not isinstance(size, int) or size < 1:
            raise InputError(f'mesh axis {kind!r} has size {size!r}; it must be a whole number, 1 or more')
    axes = [Axis(kind, sizes.get(kind, 1), kind) for kind in KINDS]
    return tuple(axis for axis in axes if axis.kind == 'workers' or axis.size > 1)


def axis_text(axes: Sequence[Axis]) -> str:
    """A table of axes as text.

    >>> axis_text(axis_table(workers=4, model=2))
    '4 workers x 2 model'
    """
    return ' x '.join(f'{axis.size} {axis.name}' for axis in axes)


def make(axes: Mapping[str, int] | Sequence[Axis], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with these axes over the first devices; all axes are `AxisType.Auto`.

    Args:
        axes: a table of axes, or sizes by name, outermost first.
        devices: the devices to choose from; all that JAX has, if None.

    Raises:
        InputError: an axis is smaller than 1, or there are fewer devices than the mesh needs.

    >>> dict(make(axis_table(workers=4, model=2)).shape)
    {'workers': 4, 'model': 2}
    """
    sizes = axes if isinstance(axes, Mapping) else {axis.name: axis.size for axis in axes}
    devices = jax.devices() if devices is None else devices
    for name, n in sizes.items():
        if n < 1:
            raise InputError(f'mesh axis {name!r} has size {n}; it must be 1 or more')
    need = math.prod(sizes.values())
    if need > len(devices):
        shape = ' x '.join(f'{n} {name}' for name, n in sizes.items())
        raise InputError(
            f'a mesh of {shape} needs {need} devices, and there are {len(devices)} ({devices[0].platform}). '
            f'Emulate them on CPU with --emulate (in Python: jax.config.update("jax_num_cpu_devices", {need}) '
            'before anything runs), or simulate the workers on one device with --simulate.'
        )
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices[:need])


def path_text(path: KeyPath) -> str:
    """A leaf's path as text, for rules and messages: keys joined by `/`.

    >>> jax.tree_util.tree_flatten_with_path({'a': [1]})[0][0][0]
    (DictKey(key='a'), SequenceKey(idx=0))
    >>> path_text(jax.tree_util.tree_flatten_with_path({'a': [1]})[0][0][0])
    'a/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator='/')


def specs(params: Any, rules: Rules, mesh: Mesh | AbstractMesh | None) -> Any:
    """The `PartitionSpec` of each leaf of `params`: of the first rule that matches the leaf's path, else replicated.

    Axes that the mesh does not have are ignored, so that a model's rules fit any mesh.

    Args:
        params: the parameters, or their shapes.
        rules: sharding rules; see `Rules`.
        mesh: the mesh; without one nothing is sharded.

    Raises:
        InputError: a rule matches no leaf, or has more dims than a leaf, or its axis does not divide a dim.

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
        raise InputError(f'sharding rules that match no parameter: {sorted(unused)}; the parameters are {names}')
    return out


def _fitting(
    name: str, shape: tuple[int, ...], pattern: str, dims: tuple[str | None, ...], axes: Mapping[str, int]
) -> PartitionSpec:
    """The rule's spec for this leaf, without axes that the mesh does not have.

    Raises:
        InputError: the rule does not fit the leaf.
    """
    if len(dims) > len(shape):
        raise InputError(f'rule {pattern!r} names {len(dims)} dims, and parameter {name!r} has {len(shape)}: {shape}')
    for dim, (axis, n) in enumerate(zip(dims, shape, strict=False)):
        if axis is not None and n % axes.get(axis, 1):
            raise InputError(
                f'dim {dim} of parameter {name!r} {shape} has {n} entries, which mesh axis {axis!r} '
                f'of size {axes[axis]} does not divide (rule {pattern!r}); change the size of one of them'
            )
    kept = [axis if axes.get(axis or '', 1) > 1 else None for axis in dims]
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def state_specs(state: Any, params: Any, param_specs: Any, sizes: Mapping[str, int]) -> Any:
    """Specs of an optimiser state: a leaf that belongs to a parameter is sharded like it; all others are replicated.

    A leaf belongs to a parameter if its path ends with the parameter's path and its last dims are the parameter's dims,
    as for moments, residuals and queues [k, ...]. A leaf of another shape whose first dim is the parameter's number of
    shards is sharded along that dim, one entry for each shard. Without specs the compiler would replicate all leaves.

    Args:
        state: shapes of the state.
        params: shapes of the parameters.
        param_specs: a `PartitionSpec` for each parameter.
        sizes: sizes of the mesh's axes by name.

    >>> of = lambda *shape: jax.ShapeDtypeStruct(shape, 'float32')
    >>> state = {'queue': {'up': of(3, 8, 4)}, 'factor': {'up': of(2, 4, 1)}}
    >>> state_specs(state, {'up': of(8, 4)}, {'up': jax.P(None, 'model')}, {'model': 2})
    {'factor': {'up': P('model',)}, 'queue': {'up': P(None, None, 'model')}}
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    leaf_specs = jax.tree.leaves(param_specs, is_leaf=is_spec)
    parameters = [(path, p.shape, pspec) for (path, p), pspec in zip(leaves, leaf_specs, strict=True)]
    # The longest path first: with parameters 'b' and 'a/b', the leaf 'mu/a/b' belongs to 'a/b'.
    parameters.sort(key=lambda parameter: -len(parameter[0]))

    def spec(path: KeyPath, leaf: Any) -> PartitionSpec:
        for name, shape, pspec in parameters:
            if path[len(path) - len(name) :] != name or not pspec:
                continue
            extra = len(leaf.shape) - len(shape)
            if extra >= 0 and leaf.shape[extra:] == shape:
                return PartitionSpec(*(None,) * extra, *pspec)
            axes = tuple(sorted(axis for axis in pspec if axis is not None))
            if leaf.shape[:1] == (math.prod(sizes[axis] for axis in axes),):
                return PartitionSpec(axes)
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, state)
