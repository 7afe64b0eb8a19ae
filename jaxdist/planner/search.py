"""All layouts of a workload, ranked by the time of a step."""

import functools
from collections.abc import Callable, Iterable, Sequence

from jaxdist.core.errors import InputError
from jaxdist.planner.cost import Estimate, Traffic, estimate, with_traffic
from jaxdist.planner.layouts import AXES, layouts
from jaxdist.planner.machines import Machine
from jaxdist.planner.workload import Workload


def rank(
    workload: Workload,
    machine: Machine,
    devices: int,
    traffics: Callable[[int], Sequence[Traffic]],
    workers: int | None = None,
) -> list[Estimate]:
    """Estimates of all layouts with all traffics: those that fit first, by step time, then the others, by memory.

    Of those that take as long, in three digits, the ones with the fewest axes come first, then the smallest.

    Args:
        workload: the model and its batch.
        machine: the machine.
        devices: the number of devices.
        traffics: what workers may send to each other, by their number.
        workers: the number of workers; None for any.

    Raises:
        InputError: the workload has no layout over so many devices.

    >>> from jaxdist.planner.machines import MACHINES
    >>> from jaxdist.planner.workload import decoder
    >>> model = decoder(16, 2048, 8192, 32768, 2048, batch=512, heads=16)
    >>> best = rank(model, MACHINES['v5e'], 256, lambda workers: [Traffic('mean()', 8 * model.parameters)])[0]
    >>> f'{best.layout.fsdp} x {best.layout.model}, {best.step:.2f} s, {best.total / 1e9:.1f} GB'
    '256 x 1, 0.37 s, 6.0 GB'
    """
    known = functools.cache(traffics)
    found = []
    for layout in layouts(workload, devices):
        if workers in (None, layout.workers):
            between = known(layout.workers)
            found.append(estimate(workload, machine, layout, between[0]))
            found += [with_traffic(found[-1], workload, machine, other) for other in between[1:]]
    if not found:
        shards = ', '.join(f'{axis} {size}' for axis, size in workload.limits.items())
        of = f' and {workers} workers' if workers else ''
        raise InputError(
            f'no layout has {devices} devices{of}: workers x fsdp x expert must divide the batch of {workload.batch}, '
            f'and axes what they shard: {shards}; choose another number, such as a power of two'
        )
    inside = sorted((cost for cost in found if fits(cost, machine)), key=_order)
    return inside + sorted((cost for cost in found if not fits(cost, machine)), key=lambda cost: cost.total)


def _order(cost: Estimate) -> tuple[float, int, float]:
    """By the time of a step, in three digits; then the fewest axes; then the least memory."""
    axes = sum(getattr(cost.layout, axis) > 1 for axis in AXES)
    return float(f'{cost.step:.2e}'), axes, cost.total


def fits(cost: Estimate, machine: Machine) -> bool:
    """Whether a device has the memory.

    Args:
        cost: an estimate.
        machine: the machine.

    >>> from jaxdist.planner.layouts import Layout
    >>> from jaxdist.planner.machines import MACHINES
    >>> from jaxdist.planner.cost import NOTHING
    >>> [fits(Estimate(Layout(), NOTHING, {}, {'head': size}, {}), MACHINES['h100']) for size in (79e9, 81e9)]
    [True, False]
    """
    return cost.total <= machine.memory


def front(estimates: Iterable[Estimate]) -> list[Estimate]:
    """The Pareto front of step time and memory, from the fastest to the smallest.

    Args:
        estimates: estimates in any order.

    >>> from jaxdist.planner.layouts import Layout
    >>> from jaxdist.planner.cost import NOTHING
    >>> made = [Estimate(Layout(), NOTHING, {'edge': s}, {'head': m}, {}) for s, m in ((1, 5), (2, 6), (3, 4), (3, 5))]
    >>> [(cost.step, cost.total) for cost in front(made)]
    [(1, 5), (3, 4)]
    """
    best: list[Estimate] = []
    for _, total, _, cost in sorted((cost.step, cost.total, at, cost) for at, cost in enumerate(estimates)):
        if not best or total < best[-1].total:
            best.append(cost)
    return best
