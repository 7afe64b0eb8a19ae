"""The workers of a program: along an axis of a mesh, or simulated on one device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxdist.core import collectives
from jaxdist.core.errors import InputError


@dataclass(frozen=True)
class Workers:
    """The workers of a program.

    Attributes:
        count: the number of workers W.
        mesh: a mesh with the worker axis (its other axes are left to the compiler), or None to simulate the workers on
            one device. An abstract mesh is enough for tracing.
        axis: the name of the worker axis.
    """

    count: int
    mesh: Mesh | AbstractMesh | None = None
    axis: str = collectives.AXIS

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f'there must be 1 worker or more, not {self.count}')


def on_mesh(mesh: Mesh | AbstractMesh, axis: str = collectives.AXIS) -> Workers:
    """The workers along an axis of a mesh.

    Raises:
        InputError: the mesh has no axis of this name, or an axis that is not of `AxisType.Auto`.

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
    """Simulated workers: `count` workers on one device, by `vmap`.

    >>> simulated(64).count
    64
    """
    return Workers(count, None, axis)


def abstract(count: int, axis: str = collectives.AXIS, others: Mapping[str, int] | None = None) -> Workers:
    """Workers on an abstract mesh without devices, for programs that are traced and do not run.

    Args:
        count: the number of workers.
        axis: the name of the worker axis.
        others: sizes of the mesh's other axes by name.

    >>> abstract(1024).count
    1024
    """
    axes = {axis: count, **(others or {})}
    return Workers(
        count, AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)), axis
    )


def local_shapes(data: Any, count: int) -> Any:
    """The shapes of one worker's part of arrays [rows, ...], whose rows are divided among `count` workers.

    Dtypes are those that JAX would use, float32 for float64.

    >>> import numpy as np
    >>> local_shapes({'x': np.zeros((8, 3))}, 4)
    {'x': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    dtype = jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // count, *x.shape[1:]), dtype(x.dtype)), data)
