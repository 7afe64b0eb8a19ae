"""Layouts of a model over devices, and all those that a workload can have."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxdist.core.errors import InputError
from jaxdist.planner.workload import Workload

AXES = ('workers', 'stage', 'fsdp', 'context', 'expert', 'model')
"""The axes of the mesh in its order: neighbours along the last one are neighbours in the machine."""


class Layout(NamedTuple):
    """How devices share the work of a step.

    Attributes:
        workers: the number of workers.
        stage: pipeline stages of a worker.
        fsdp: devices over which parameters are fully sharded.
        context: devices that share the positions of an example.
        expert: devices over which experts, and the batch, are divided.
        model: devices over which the model's rules shard.
        microbatches: parts of a device's batch: of a pipeline, or of gradient accumulation.
        regather: whether blocks are gathered when they are evaluated, forward and backward (ZeRO stage 3).
        again: whether blocks are evaluated again for the gradient (rematerialisation).

    >>> Layout(workers=2, model=4).devices
    8
    """

    workers: int = 1
    stage: int = 1
    fsdp: int = 1
    context: int = 1
    expert: int = 1
    model: int = 1
    microbatches: int = 1
    regather: bool = False
    again: bool = False

    @property
    def devices(self) -> int:
        """All devices."""
        return math.prod(getattr(self, axis) for axis in AXES)


def layouts(workload: Workload, devices: int) -> Iterator[Layout]:
    """All layouts of a workload over a number of devices.

    The sizes of axes divide what the workload's limits say, and the batch. Microbatches are powers of two. As in
    jaxdist, blocks of a model in parts are evaluated again for the gradient, stages do not regather, and a model
    without parts does neither.

    Args:
        workload: the model and its batch.
        devices: the number of devices.

    Raises:
        InputError: there are no devices, or no examples.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=1, heads=1)
    >>> [(at.stage, at.context, at.again) for at in layouts(small, 2)]
    [(1, 2, True), (2, 1, True)]
    """
    if devices < 1 or workload.batch < 1:
        raise InputError(f'a layout has 1 device and 1 example or more, not {devices} and {workload.batch}')
    for sizes in _sizes(workload, devices):
        at = Layout()._replace(**sizes)
        shares = at.workers * at.fsdp * at.expert
        if workload.batch % shares == 0:
            for microbatches in _powers(workload.batch // shares):
                for regather, again in _choices(workload, at.stage, at.fsdp):
                    yield at._replace(microbatches=microbatches, regather=regather, again=again)


def _sizes(workload: Workload, devices: int, axes: tuple[str, ...] = AXES) -> Iterator[dict[str, Any]]:
    """All sizes of these axes, by name."""
    if not axes:
        if devices == 1:
            yield {}
        return
    for size in _usable(workload, axes[0], devices):
        for rest in _sizes(workload, devices // size, axes[1:]):
            yield {axes[0]: size, **rest}


def _usable(workload: Workload, axis: str, devices: int) -> list[int]:
    """The sizes of an axis that divide the number of devices and the axis's limit."""
    free = axis in ('workers', 'fsdp')
    limit = workload.limits.get(axis, devices if free else 1)
    if axis == 'stage' and not workload.layers:
        limit = 1
    return [size for size in _divisors(devices) if limit % size == 0]


@functools.cache
def _divisors(number: int) -> tuple[int, ...]:
    """All numbers that divide a number."""
    return tuple(n for n in range(1, number + 1) if number % n == 0)


def _powers(number: int) -> Iterator[int]:
    """The powers of two that divide a number."""
    power = 1
    while number % power == 0:
        yield power
        power *= 2


def _choices(workload: Workload, stage: int, fsdp: int) -> list[tuple[bool, bool]]:
    """The values of `regather` and `again`."""
    if stage > 1:
        return [(False, True)]
    if not workload.layers:
        return [(False, False)]
    return [(False, True)] + ([(True, True)] if fsdp > 1 else [])
