"""Where the workers are: along an axis of a mesh, or simulated on one device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxdist.core import collectives
from jaxdist.core.errors import InputError


@dataclass(frozen=True)
class Workers:
    """Where the workers are.

    Attributes:
        count: the number of workers W.
        mesh: a mesh with the worker axis (its other axes are left to the compiler), or None to simulate on one
            device. An abstract mesh will do for tracing.
        axis: the worker axis's name.
    """

    count: int
    mesh: Mesh | AbstractMesh | None = None
    axis: str = collectives.AXIS

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f'there must be 1 worker or more, not {self.count}')


def on_mesh(mesh: Mesh | AbstractMesh, axis: str = collectives.AXIS) -> Workers:
    """The workers of a mesh's axis.

    Raises:
        InputError: the mesh has no such axis, or one that is not of `AxisType.Auto`.

    >>> import jaxdist.core.mesh
    >>> on_mesh(jaxdist.core.mesh.make({'workers': 2, 'model': 2})).count
    2
    """
    if axis not in mesh.shape:
        raise InputError(f'the mesh has no axis {axis!r}; its axes are {list(mesh.shape)}')
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise InputError(f'every axis of the mesh must be of AxisType.Auto; they are {mesh.axis_types}')
    return Workers(mesh.shape[axis], mesh, axis)


def simulated(count: int, axis: str = collectives.AXIS) -> Workers:
    """This many workers on one device, by `vmap`.

    >>> simulated(64).count
    64
    """
    return Workers(count, None, axis)


def abstract(count: int, axis: str = collectives.AXIS, others: Mapping[str, int] | None = None) -> Workers:
    """This many workers on a mesh that is not there: for programs that are traced, and do not run.

    Args:
        count: the number of workers.
        axis: the worker axis's name.
        others: the mesh's other axes and their sizes.

    >>> abstract(1024).count
    1024
    """
    axes = {axis: count, **(others or {})}
    return Workers(
        count, AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)), axis
    )


def local_shapes(data: Any, count: int) -> Any:
    """The shapes of one worker's part of arrays [rows, ...] that so many workers divide, in dtypes that JAX has.

    >>> local_shapes({'x': jnp.zeros((8, 3))}, 4)
    {'x': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    dtype = jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // count, *x.shape[1:]), dtype(x.dtype)), data)
