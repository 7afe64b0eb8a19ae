"""The memory that one device needs, by one formula a line."""

from jaxdist.parallel.schedules import Schedule
from jaxdist.planner.layouts import Layout
from jaxdist.planner.sharding import examples, own_parameters, share_of, stored
from jaxdist.planner.workload import Workload


def memory_lines(workload: Workload, layout: Layout) -> dict[str, float]:
    """Bytes of one device, by line.

    Parameters and gradients are float32, and with the optimiser's state divided over `fsdp`. Devices that are fully
    sharded have gradients whole as well until they are scattered: of one block at a time if blocks are regathered, and
    else of all of them, in the dtype of the forward pass, or in float32 where microbatches are added up. The copy that
    the forward pass sees is whole, or of one block.

    Args:
        workload: the model and its batch.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=4, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> {line: round(bytes) for line, bytes in memory_lines(small, Layout(fsdp=4, regather=True, again=True)).items()}
    {'parameters': 2816, 'optimiser': 5632, 'gradients': 4608, 'gathered': 1792, 'activations': 4608, 'head': 3072}
    """
    own, number, whole = own_parameters(workload, layout), workload.compute_bytes, 0.0
    here = stored(workload, layout)
    seen = own.edge + (own.block if layout.regather else own.blocks)
    if layout.fsdp > 1:
        added_up = layout.microbatches > 1 or layout.stage > 1
        whole = seen * (4 if added_up else number)
    return {
        'parameters': 4 * here,
        'optimiser': workload.optimizer_bytes * here,
        'gradients': 4 * here + whole,
        'gathered': number * seen if layout.fsdp > 1 or number != 4 else 0.0,
        'activations': activations(workload, layout),
        'head': workload.head
        * examples(workload, layout)
        / layout.context
        * share_of(workload.edge_share, layout.model),
    }


def activations(workload: Workload, layout: Layout) -> float:
    """Bytes that blocks keep for the backward pass.

    Without `again`, all blocks keep all; in a pipeline for min(m, S) microbatches, as in asynchronous 1F1B. With it,
    inputs are kept, and one block is evaluated at a time; a stage keeps the inputs of `Schedule.held` microbatches, has
    one more in each direction, and is evaluated as a whole.

    Args:
        workload: the model and its batch.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=4, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> activations(small, Layout(again=True)) == 4 * (4 * small.passed + small.kept)
    True
    >>> activations(small, Layout(stage=2, microbatches=4, again=True)) == (1 + 2) * small.passed + 2 * small.kept
    True
    """
    rows, blocks, stages = examples(workload, layout) / layout.context, workload.blocks / layout.stage, layout.stage
    kept, passed = kept_by_block(workload, layout.model) * rows, workload.passed * rows
    if not layout.again:
        return min(layout.microbatches, stages) * blocks * kept
    if stages == 1:
        return blocks * passed + kept
    return (Schedule(stages, layout.microbatches).held + 2) * passed + blocks * kept


def kept_by_block(workload: Workload, shards: int) -> float:
    """Bytes of one example that one device keeps of a block.

    Between all-reduces activations are sharded over `model`; the input of each pair of matrices, and its normalisation,
    are whole on every device.

    Args:
        workload: the model.
        shards: the devices of `model`.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=4, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> kept_by_block(small, 1) == small.kept, kept_by_block(small, 2) == (small.kept + 4 * small.passed) / 2
    (True, True)
    """
    whole = min(2 * workload.pairs * workload.passed, workload.kept)
    return whole + (workload.kept - whole) * share_of(workload.model_share, shards)
