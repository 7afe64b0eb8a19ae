"""What one device of a layout has of the parameters and of the batch."""

from typing import NamedTuple

from jaxdist.planner.layouts import Layout
from jaxdist.planner.workload import Workload


class Own(NamedTuple):
    """Parameters that one device would have without `fsdp`.

    Attributes:
        block: of one block.
        blocks: of the blocks of its stage.
        edge: outside of blocks; each stage has them.
    """

    block: float
    blocks: float
    edge: float


def share_of(sharded: float, devices: int) -> float:
    """The share that one of some devices has of what is sharded over them in part.

    Args:
        sharded: the share that is sharded.
        devices: the number of devices.

    >>> share_of(0.5, 2), share_of(1.0, 4)
    (0.75, 0.25)
    """
    return sharded / devices + 1 - sharded


def own_parameters(workload: Workload, layout: Layout) -> Own:
    """The parameters that one device would have without `fsdp`.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=4, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> own_parameters(small, Layout(stage=2, model=2))
    Own(block=320.0, blocks=640.0, edge=256.0)
    """
    experts = share_of(workload.expert_share, layout.expert)
    block = workload.block * experts * share_of(workload.model_share, layout.model)
    edge = workload.edge * share_of(workload.edge_share, layout.model)
    return Own(block, workload.blocks / layout.stage * block, edge)


def examples(workload: Workload, layout: Layout) -> float:
    """The examples of one microbatch of one device.

    Args:
        workload: the model and its batch.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=4, width=8, mlp=16, vocabulary=32, context=16, batch=64, heads=2)
    >>> examples(small, Layout(workers=2, fsdp=2, model=2, microbatches=4))
    4.0
    """
    return workload.batch / (layout.workers * layout.fsdp * layout.expert * layout.microbatches)


def stored(workload: Workload, layout: Layout) -> float:
    """The parameters that one device stores.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=4, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> stored(small, Layout(stage=2, fsdp=4, model=2))
    224.0
    """
    own = own_parameters(workload, layout)
    return (own.blocks + own.edge) / layout.fsdp
