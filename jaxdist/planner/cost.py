"""What a step costs under a layout: seconds, memory and bytes sent, by one formula a line.

Nothing is hidden behind anything else: what a device computes and what it sends are added up. A machine that overlaps
them is faster than the estimate, by at most a factor of two where they take the same time.
"""

from typing import NamedTuple

from jaxdist.parallel.schedules import Schedule
from jaxdist.planner.layouts import AXES, Layout
from jaxdist.planner.machines import Machine
from jaxdist.planner.memory import memory_lines
from jaxdist.planner.sent import (
    context_bytes_of_tick,
    expert_bytes_of_tick,
    gradient_bytes,
    model_bytes_of_tick,
    passes,
    sent_over_context,
    sent_over_expert,
    sent_over_fsdp,
    sent_over_model,
    sent_over_stage,
    sent_over_workers,
)
from jaxdist.planner.sharding import examples, share_of, stored
from jaxdist.planner.workload import Workload


class Traffic(NamedTuple):
    """What workers send to each other.

    Attributes:
        name: the name, such as an update line.
        bytes_per_step: the bytes that one worker as a whole sends on an average step.
        optimizer_bytes: bytes of its state for each parameter, moments and residuals; None for the workload's.
    """

    name: str
    bytes_per_step: float
    optimizer_bytes: float | None = None


NOTHING = Traffic('nothing', 0.0)
"""Of a single worker."""


class Estimate(NamedTuple):
    """What a step costs one device.

    Attributes:
        layout: the layout.
        traffic: what workers send to each other.
        seconds: of a step, by line.
        memory: bytes, by line.
        sent: bytes of a step, by axis.
    """

    layout: Layout
    traffic: Traffic
    seconds: dict[str, float]
    memory: dict[str, float]
    sent: dict[str, float]

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def total(self) -> float:
        """Bytes of memory."""
        return sum(self.memory.values())

    @property
    def binds(self) -> str:
        """The line of the most seconds."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def bubble(self) -> float:
        """The share of a schedule's slots in which a stage waits: (S - 1) / (m + S - 1)."""
        return float(Schedule(self.layout.stage, self.layout.microbatches).bubble)


class Tick(NamedTuple):
    """Seconds that one microbatch takes on the last stage, forward and backward.

    Attributes:
        blocks: of the blocks.
        edge: of what is outside of them; the other stages wait.
        model: of the all-reduces over `model`.
        context: of what goes round over `context`.
        expert: of tokens that go to experts and back.
    """

    blocks: float
    edge: float
    model: float
    context: float
    expert: float


def links(machine: Machine, layout: Layout) -> dict[str, float]:
    """Bytes/s that a device sends along each axis.

    An axis is inside a group if its size times the sizes of all axes after it is at most the machine's group.

    Args:
        machine: the machine.
        layout: the layout.

    >>> from jaxdist.planner.machines import MACHINES
    >>> {axis: speed / 1e9 for axis, speed in links(MACHINES['v5e'], Layout(workers=2, fsdp=256)).items()}
    {'model': 100.0, 'expert': 100.0, 'context': 100.0, 'fsdp': 100.0, 'stage': 100.0, 'workers': 3.125}
    """
    speeds, joined = {}, 1
    for axis in reversed(AXES):
        joined *= getattr(layout, axis)
        speeds[axis] = machine.link if joined <= machine.group else machine.slow_link
    return speeds


def tick(workload: Workload, machine: Machine, layout: Layout) -> Tick:
    """What one microbatch costs the last stage.

    Products take their FLOPs by the rate that is reached. A block, with what it sends, takes at least the machine's
    `launch`, and a third of it more if it is evaluated again: while the host launches, devices send and compute.

    Args:
        workload: the model.
        machine: the machine.
        layout: the layout.

    >>> from jaxdist.planner.machines import MACHINES
    >>> from jaxdist.planner.workload import decoder
    >>> machine, small = MACHINES['v5e'], decoder(2, 8, 16, vocabulary=32, context=16, batch=4, heads=2)
    >>> costs = tick(small, machine, Layout(model=2))
    >>> round((costs.blocks + costs.model) / machine.launch, 6)
    2.0
    """
    often, speeds, rate = passes(workload, layout), links(machine, layout), machine.flops * machine.reached
    rows, blocks = examples(workload, layout) / layout.context, workload.blocks / layout.stage
    products = blocks * workload.block_flops * rows * share_of(workload.model_share, layout.model)
    edge = workload.edge_flops * rows * share_of(workload.edge_share, layout.model)
    model = model_bytes_of_tick(workload, layout) / speeds['model']
    context = context_bytes_of_tick(workload, layout) / speeds['context']
    expert = expert_bytes_of_tick(workload, layout) / speeds['expert']
    launches = blocks * often.block / 3 * machine.launch - model - context - expert
    return Tick(max(often.block * products / rate, launches), often.edge * edge / rate, model, context, expert)


def estimate(workload: Workload, machine: Machine, layout: Layout, between: Traffic = NOTHING) -> Estimate:
    """What a step of a workload costs one device.

    All stages walk in step, so that each of the m + S - 1 ticks takes as long as the last stage's, which has the head.
    Seconds of `bubble` are the S - 1 ticks in which a stage waits, with what is sent inside of blocks; the bytes of
    these ticks are in `sent`.

    Args:
        workload: the model and its batch.
        machine: the machine.
        layout: the layout.
        between: what workers send to each other.

    >>> from jaxdist.planner.machines import MACHINES
    >>> from jaxdist.planner.workload import decoder
    >>> model = decoder(16, 2048, 8192, 32768, 2048, batch=512, heads=16)
    >>> cost = estimate(model, MACHINES['v5e'], Layout(fsdp=128, model=2, again=True))
    >>> f'{cost.step:.2f} s, {cost.total / 1e9:.1f} GB, {cost.binds}'
    '0.38 s, 5.0 GB, blocks'
    """
    costs, speeds, ticks = tick(workload, machine, layout), links(machine, layout), layout.microbatches
    sent = {
        'workers': sent_over_workers(workload, layout, between.bytes_per_step),
        'stage': sent_over_stage(workload, layout),
        'fsdp': sent_over_fsdp(workload, layout),
        'context': sent_over_context(workload, layout),
        'expert': sent_over_expert(workload, layout),
        'model': sent_over_model(workload, layout),
    }
    gradient = gradient_bytes(workload, layout, layout.context)
    seconds = {
        'blocks': ticks * costs.blocks,
        'edge': ticks * costs.edge,
        'model': ticks * costs.model,
        'stage': sent['stage'] / speeds['stage'],
        'bubble': (layout.stage - 1) * sum(costs),
        'fsdp': sent['fsdp'] / speeds['fsdp'],
        'context': ticks * costs.context + gradient / speeds['context'],
        'expert': ticks * costs.expert + sent_over_expert(workload._replace(routed=0.0), layout) / speeds['expert'],
        'workers': sent['workers'] / speeds['workers'],
    }
    return Estimate(layout, between, seconds, memory_lines(_under(workload, between), layout), sent)


def _under(workload: Workload, between: Traffic) -> Workload:
    """The workload with the optimiser's state of this traffic."""
    given = between.optimizer_bytes
    return workload if given is None else workload._replace(optimizer_bytes=given)


def with_traffic(cost: Estimate, workload: Workload, machine: Machine, between: Traffic) -> Estimate:
    """The same layout with other traffic between workers: two lines change.

    Args:
        cost: the estimate.
        workload: its workload.
        machine: its machine.
        between: the other traffic.

    >>> from jaxdist.planner.machines import MACHINES
    >>> from jaxdist.planner.workload import decoder
    >>> small = decoder(layers=2, width=8, mlp=16, vocabulary=32, context=16, batch=4, heads=2)
    >>> at, between = Layout(workers=2), Traffic('mean()', 1e6)
    >>> first = estimate(small, MACHINES['v5e'], at)
    >>> with_traffic(first, small, MACHINES['v5e'], between) == estimate(small, MACHINES['v5e'], at, between)
    True
    """
    sent = sent_over_workers(workload, cost.layout, between.bytes_per_step)
    seconds = {**cost.seconds, 'workers': sent / links(machine, cost.layout)['workers']}
    state = _under(workload, between).optimizer_bytes * stored(workload, cost.layout)
    memory = {**cost.memory, 'optimiser': state}
    return cost._replace(traffic=between, seconds=seconds, memory=memory, sent={**cost.sent, 'workers': sent})
