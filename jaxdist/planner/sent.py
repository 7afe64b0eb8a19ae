"""The bytes that one device sends at a step, by one formula for each axis: those that compiled programs send.

See `jaxdist.parallel`. S stages, F devices of `fsdp`, C of `context`, E of `expert`, M of `model`;
m microbatches.
"""

from typing import NamedTuple

from jaxdist.planner.layouts import Layout
from jaxdist.planner.sharding import examples, own_parameters, share_of, stored
from jaxdist.planner.workload import Workload

WHOLE = 4
"""Bytes of a parameter, and of its gradient: they are float32."""


class Passes(NamedTuple):
    """How often a step evaluates what.

    Attributes:
        block: passes through blocks, where a backward pass counts as two forward passes.
        edge: passes through what is outside of blocks.
        reductions: the all-reduces over `model` of one block.
    """

    block: int
    edge: int
    reductions: int


def passes(workload: Workload, layout: Layout) -> Passes:
    """How often a step evaluates blocks, what is outside of them, and all-reduces.

    A block has `pairs` all-reduces forward and as many backward. Evaluating it again takes one pass more, and one less
    than `pairs`, since its output is not needed. A stage is evaluated again as a whole, with all of them and the head.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> passes(small, Layout(model=2)), passes(small, Layout(model=2, again=True)).reductions
    (Passes(block=3, edge=3, reductions=4), 5)
    >>> passes(small, Layout(stage=2, model=2, again=True))
    Passes(block=4, edge=4, reductions=6)
    """
    pairs = workload.pairs
    if not layout.again:
        return Passes(3, 3, 2 * pairs)
    if layout.stage > 1:
        return Passes(4, 4, 3 * pairs)
    return Passes(4, 3, 3 * pairs - min(pairs, 1))


def model_bytes_of_tick(workload: Workload, layout: Layout) -> float:
    """Bytes over `model` for one microbatch: 2 (M - 1) / M of the activations for each all-reduce.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> activations = 4 * 16 * 8 * 2
    >>> model_bytes_of_tick(small, Layout(model=2)) == 2 * 4 * (2 * 1 / 2) * activations
    True
    """
    devices, blocks = layout.model, workload.blocks / layout.stage
    activations = workload.passed * examples(workload, layout) / layout.context
    return blocks * passes(workload, layout).reductions * 2 * (devices - 1) / devices * activations


def context_bytes_of_tick(workload: Workload, layout: Layout) -> float:
    """Bytes over `context` for one microbatch, by ring attention: of keys and values C - 1 parts forward.

    Backward, they go round once more, C - 1 parts, and their gradients C parts.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> part = 4 * 16 / 4 * 8 * 2  # of the keys, or of the values
    >>> context_bytes_of_tick(small, Layout(context=4)) == 2 * (2 * 3 * part + 2 * 3 * part + 2 * 4 * part)
    True
    """
    parts, blocks = layout.context, workload.blocks / layout.stage
    if parts == 1:
        return 0.0
    part = workload.keys * examples(workload, layout) / parts * share_of(workload.model_share, layout.model)
    forward = passes(workload, layout).block - 2
    return blocks * (forward * (parts - 1) + 2 * parts - 1) * part


def sent_over_model(workload: Workload, layout: Layout) -> float:
    """Bytes of a step over `model`; stages send at each of the m + S - 1 ticks, waiting or not.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> at = Layout(stage=2, model=2, microbatches=4, again=True)
    >>> sent_over_model(small, at) == (4 + 1) * model_bytes_of_tick(small, at)
    True
    """
    return (layout.microbatches + layout.stage - 1) * model_bytes_of_tick(workload, layout)


def sent_over_context(workload: Workload, layout: Layout) -> float:
    """Bytes of a step over `context`: those of all ticks, and the all-reduce of the gradient of what a device stores.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> ring = context_bytes_of_tick(small, Layout(context=2))
    >>> sent_over_context(small, Layout(context=2)) == ring + 2 * 1 / 2 * 4 * small.parameters
    True
    """
    parts, ticks = layout.context, layout.microbatches + layout.stage - 1
    return ticks * context_bytes_of_tick(workload, layout) + gradient_bytes(workload, layout, parts)


def expert_bytes_of_tick(workload: Workload, layout: Layout) -> float:
    """Bytes over `expert` for one microbatch: tokens to experts and back, forward and backward.

    With room for so many, (E - 1) / E of it each time. Dropless experts gather the tokens of all devices, E - 1 times
    those of one, and return as many; a block that is evaluated again does not return them twice.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)._replace(routed=100.0)
    >>> expert_bytes_of_tick(small, Layout(expert=2)), expert_bytes_of_tick(small, Layout(expert=2, again=True))
    (800.0, 1200.0)
    """
    devices, blocks = layout.expert, workload.blocks / layout.stage
    if devices == 1:
        return 0.0
    forward = passes(workload, layout).block - 2
    each = (devices - 1) * workload.routed * examples(workload, layout) / layout.context
    if workload.dropless:
        returns = forward if layout.stage > 1 else 1
        return blocks * (forward + returns + 2) * each
    return blocks * (2 * forward + 2) * each / devices


def sent_over_expert(workload: Workload, layout: Layout) -> float:
    """Bytes of a step over `expert`: those of all ticks, and the all-reduce of the gradient of all but experts.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> sent_over_expert(small, Layout(expert=2)) == 2 * 1 / 2 * 4 * small.parameters
    True
    """
    ticks = layout.microbatches + layout.stage - 1
    others = workload._replace(block=workload.block * (1 - workload.expert_share), expert_share=0.0)
    return ticks * expert_bytes_of_tick(workload, layout) + gradient_bytes(others, layout, layout.expert)


def sent_over_stage(workload: Workload, layout: Layout) -> float:
    """Bytes of a step over `stage`: activations and their gradients at each tick, and the edge's gradient.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> activations, edge = 16 * 8 * 2, 4 * 32 * 8
    >>> sent_over_stage(small, Layout(stage=2, microbatches=4)) == 2 * (4 + 1) * activations + 2 * 1 / 2 * edge
    True
    """
    stages = layout.stage
    if stages == 1:
        return 0.0
    activations = workload.passed * examples(workload, layout) / layout.context
    edge = own_parameters(workload, layout).edge / layout.fsdp
    return 2 * (layout.microbatches + stages - 1) * activations + 2 * (stages - 1) / stages * WHOLE * edge


def sent_over_fsdp(workload: Workload, layout: Layout) -> float:
    """Bytes of a step over `fsdp`: (F - 1) / F of the parameters as the forward pass sees them, and of their gradient.

    Blocks that are regathered are gathered twice, and with their gradient for each microbatch.

    Args:
        workload: the model.
        layout: the layout.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> sent_over_fsdp(small, Layout(fsdp=4)) == 3 / 4 * small.parameters * (2 + 4)
    True
    >>> twice = sent_over_fsdp(small, Layout(fsdp=2, microbatches=2, regather=True, again=True))
    >>> twice == 1 / 2 * (small.edge * (2 + 4) + 2 * 2 * small.block * (2 + 2 + 4))
    True
    """
    own, number = own_parameters(workload, layout), workload.compute_bytes
    edge, blocks = (number + WHOLE) * own.edge, (number + WHOLE) * own.blocks
    if layout.regather:
        blocks = layout.microbatches * (2 * number + WHOLE) * own.blocks
    return (layout.fsdp - 1) / layout.fsdp * (edge + blocks)


def sent_over_workers(workload: Workload, layout: Layout, bytes_of_worker: float) -> float:
    """Bytes of a step over `workers`: what a worker sends divides among its devices as its parameters do.

    The devices of `context` store the same, and each sends all of it; so do stages with what is outside of blocks.

    Args:
        workload: the model.
        layout: the layout.
        bytes_of_worker: what one worker as a whole sends.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> sent_over_workers(small, Layout(workers=2, fsdp=4), 100.0)
    25.0
    """
    return bytes_of_worker * stored(workload, layout) / workload.parameters if layout.workers > 1 else 0.0


def gradient_bytes(workload: Workload, layout: Layout, devices: int) -> float:
    """Bytes of an all-reduce among some devices of the gradient of what one of them stores.

    Args:
        workload: the model.
        layout: the layout.
        devices: the number of devices.

    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> gradient_bytes(small, Layout(fsdp=2), 4) == 2 * 3 / 4 * 4 * small.parameters / 2
    True
    """
    return 2 * (devices - 1) / devices * WHOLE * stored(workload, layout)
