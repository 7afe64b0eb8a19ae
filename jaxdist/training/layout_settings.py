"""The settings of an experiment's mesh, and of how the work is divided on it."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import tyro

from jaxdist.core.errors import InputError
from jaxdist.core.mesh import KINDS, Axis, axis_table, axis_text
from jaxdist.models.attention import Attention
from jaxdist.parallel.schedules import ScheduleName


@dataclass(frozen=True)
class Mesh:
    """The device mesh."""

    workers: int = 8
    """Number of workers: each gets a part of the batch, and they communicate as the update line defines."""
    stage: int = 1
    """Pipeline stages of one worker, over which a model's blocks are divided; see docs/parallelism.md."""
    fsdp: int = 1
    """Devices of one worker over which its batch, parameters, gradients and optimiser state are sharded."""
    context: int = 1
    """Devices of one worker that share each sequence, and evaluate the loss of their positions."""
    expert: int = 1
    """Devices of one worker over which the experts of a model, and its batch, are divided."""
    model: int = 1
    """Devices of one worker over which layers are sharded, by the model's rules: tensor parallelism."""
    emulate: Annotated[bool, tyro.conf.arg(prefix_name=False)] = False
    """Emulate the devices on this machine's CPU."""
    simulate: Annotated[bool, tyro.conf.arg(prefix_name=False)] = False
    """Simulate the workers on one device."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The mesh axes: name, size and kind of each."""
        return axis_table(**{kind: getattr(self, kind) for kind in KINDS if hasattr(self, kind)})

    @property
    def devices(self) -> int:
        """The number of devices that the mesh needs; 1 if the workers are simulated."""
        return 1 if self.simulate else math.prod(axis.size for axis in self.axes)


def check_devices(mesh: Mesh) -> None:
    """Checks that the devices of several processes, which have joined, are those of the mesh: no process has more.

    Raises:
        InputError: they are more or fewer.

    >>> check_devices(Mesh(workers=2))
    """
    if jax.process_count() > 1 and mesh.devices != jax.device_count():
        raise InputError(
            f'{jax.process_count()} processes have {jax.device_count()} devices in all, and the mesh must have as '
            f'many: it has {axis_text(mesh.axes)}'
        )


@dataclass(frozen=True)
class ContextSettings:
    """How devices that share sequences work together."""

    attention: Attention = 'ring'
    """Attention: ring (keys and values go round), ulysses (all positions of some heads) or gathered (all keys)."""


@dataclass(frozen=True)
class PipelineSettings:
    """How a worker's batch walks through its stages."""

    microbatches: int = 4
    """Parts of a device's batch that follow each other. Of a step, (S - 1) / (m + S - 1) is waiting, with S stages."""
    schedule: ScheduleName = '1f1b'
    """Schedule: 1f1b, or gpipe, which keeps the inputs of all microbatches."""


@dataclass(frozen=True)
class FsdpSettings:
    """How fully sharded workers gather parameters and scatter gradients."""

    regather: bool = False
    """Gather each block of a model in parts when it is evaluated, and keep none (ZeRO stage 3)."""
    gathers: str = ''
    """Codec of gathered parameters, as 'int8()'; by default they are exact."""
    scatters: str = ''
    """Codec of scattered gradients, as 'int4()'; by default sums are exact."""
