"""Compiles an experiment for TPUs that are not here: the exact bytes of a layout, and whether it fits."""

import os
import re
from fractions import Fraction
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdist import ledger
from jaxdist.core.errors import InputError
from jaxdist.core.types import Model
from jaxdist.core.workers import on_mesh
from jaxdist.data import Data
from jaxdist.training.experiment import Experiment
from jaxdist.training.train import make_program, shapes

GENERATIONS = {'v5e': ('v5e', 2), 'trillium': ('v6e', 2), 'v6e': ('v6e', 2), 'v5p': ('v5p', 3)}
"""The compiler's name of a machine, and the dims of its torus."""


class Compiled(NamedTuple):
    """What the compiler for a TPU says of a layout.

    Attributes:
        memory: bytes of memory that a device needs.
        fits: whether it has them.
        sent: bytes that a device sends at a step, by axis; empty if the layout does not fit.
    """

    memory: float
    fits: bool
    sent: dict[str, Fraction]


def compile_layout(experiment: Experiment, data: Data, model: Model, machine: str) -> Compiled:
    """Compiles an experiment's step for the TPUs of its mesh. No TPU is needed.

    Args:
        experiment: the experiment, with its mesh.
        data: its data set.
        model: its model.
        machine: the name of the machine, one of `GENERATIONS`.

    Raises:
        InputError: the machine is no TPU, or there is no compiler for TPUs.

    >>> compile_layout(Experiment(), None, None, 'h100')
    Traceback (most recent call last):
    jaxdist.InputError: layouts are compiled for TPUs alone (v5e, trillium, v6e, v5p), not for h100
    """
    if machine not in GENERATIONS:
        raise InputError(f'layouts are compiled for TPUs alone ({", ".join(GENERATIONS)}), not for {machine}')
    axes = experiment.mesh.axes
    devices = _devices(machine, experiment.mesh.devices, tuple(axis.size for axis in axes))
    mesh = jax.sharding.Mesh(devices, tuple(axis.name for axis in axes), axis_types=(AxisType.Auto,) * len(axes))
    program = make_program(experiment, data, model, on_mesh(mesh))
    whole = shapes(data.batch(experiment.seed, 0, experiment.batch, experiment.mesh.workers))
    rows = NamedSharding(mesh, PartitionSpec('workers'))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), whole)
    try:
        compiled = program.step.lower(program.state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r'(?:Used |temporaries \()([\d.]+)([KMG])', str(error))
        if 'RESOURCE_EXHAUSTED' not in str(error) or needed is None:
            raise
        return Compiled(float(needed[1]) * 2.0 ** {'K': 10, 'M': 20, 'G': 30}[needed[2]], False, {})
    collectives = ledger.compiled(compiled, mesh)
    sent = {
        axis.name: sum((c.sent * (c.times or 1) for c in collectives if axis.name in c.axes), Fraction(0))
        for axis in axes
    }
    return Compiled(compiled.memory_analysis().peak_memory_in_bytes, True, sent)


def _devices(machine: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The devices of a slice, in the order of a mesh of this shape.

    Raises:
        InputError: there is no slice of so many devices, or no compiler.
    """
    # libtpu reads these when it is loaded: ask no metadata server, and let several processes load it.
    for name, value in (('TPU_SKIP_MDS_QUERY', '1'), ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'), ('TPU_LOG_DIR', 'disabled')):
        os.environ.setdefault(name, value)
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('TPU_WORKER_ID', '0')
    kind, dims = GENERATIONS[machine]
    name = f'{kind}:{"x".join(map(str, slice_of(count, dims)))}'
    try:
        chips = topologies.get_topology_desc(platform='tpu', topology_name=name)
    except (RuntimeError, ValueError, ImportError) as error:
        raise InputError(
            f"cannot compile for {name}: {error}\nThe compiler for TPUs comes with pip install 'jaxdist[tpu]'"
        ) from error
    jax.config.update('jax_enable_compilation_cache', False)  # a program for a TPU cannot be loaded without one
    found: np.ndarray = mesh_utils.create_device_mesh(shape, chips.devices, allow_split_physical_axes=True)
    return found


def slice_of(count: int, dims: int) -> tuple[int, ...]:
    """The most even shape of a slice with a power of two of devices, the smallest size first.

    Raises:
        InputError: the number is no power of two, or below 4.

    >>> slice_of(256, 2), slice_of(8, 2), slice_of(128, 3)
    ((16, 16), (2, 4), (4, 4, 8))
    """
    power = count.bit_length() - 1
    if count < 4 or count != 1 << power:
        raise InputError(f'a slice of TPUs has 4, 8, 16, ... devices here, not {count}')
    return tuple(sorted(2 ** (power // dims + (i < power % dims)) for i in range(dims)))
