"""A machine's constants from measured step times, and how well estimates rank layouts."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from jaxdist.core.errors import InputError
from jaxdist.planner.cost import NOTHING, Traffic, estimate
from jaxdist.planner.layouts import Layout
from jaxdist.planner.machines import Machine
from jaxdist.planner.workload import Workload

CONSTANTS = ('reached', 'launch', 'link')
"""What is fitted."""
PULL = 1e-3
"""How much a constant is drawn to its value before."""


def fit(measured: Mapping[Layout, float], workload: Workload, machine: Machine, between: Traffic = NOTHING) -> Machine:
    """The machine with `reached`, `launch` and `link` fitted to step times.

    Minimises the sum of squared logarithms of estimated by measured times, by a search along one constant at a time in
    steps that shrink from a factor of 4 to 1 %. The squared logarithm of each constant by its value before counts as
    well, a thousandth of the others, so that one that the measurements do not determine stays near that.

    Args:
        measured: seconds of a step, by layout.
        workload: the model and its batch.
        machine: where the search begins.
        between: what workers send to each other.

    Raises:
        InputError: there are no measurements, or one is not positive.

    >>> from jaxdist.planner.machines import MACHINES
    >>> from jaxdist.planner.workload import decoder
    >>> model, right = decoder(16, 2048, 8192, 32768, 2048, batch=64, heads=16), MACHINES['h100']
    >>> measured = {at: estimate(model, right, at).step for at in (Layout(fsdp=8), Layout(model=8), Layout(model=2))}
    >>> round(fit(measured, model, dataclasses.replace(right, reached=0.9, link=50e9)).reached, 2)
    0.45
    """
    if not measured or min(measured.values()) <= 0:
        raise InputError('a fit needs step times, in seconds above 0')
    error_of = functools.partial(_error, measured, workload, between, machine)
    best, least, step = machine, error_of(machine), math.log(4)
    while step > math.log(1.01):
        better = best
        for constant in CONSTANTS:
            for factor in (math.exp(step), math.exp(-step)):
                other = _scaled(better, constant, factor)
                error = error_of(other)
                if error < least - 1e-12:
                    better, least = other, error
        step, best = step if better is not best else step / 2, better
    return best


def _scaled(machine: Machine, constant: str, factor: float) -> Machine:
    """The machine with one constant times a factor; `reached` is at most 1."""
    value = getattr(machine, constant) * factor
    return dataclasses.replace(machine, **{constant: min(value, 1.0) if constant == 'reached' else value})


def _error(
    measured: Mapping[Layout, float], workload: Workload, between: Traffic, before: Machine, machine: Machine
) -> float:
    """The sum of squared logarithms of estimated by measured times, and of constants by those before."""
    times = (estimate(workload, machine, layout, between).step / seconds for layout, seconds in measured.items())
    moved = (getattr(machine, constant) / getattr(before, constant) for constant in CONSTANTS)
    return sum(math.log(ratio) ** 2 for ratio in times) + PULL * sum(math.log(ratio) ** 2 for ratio in moved)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values have the mean of their ranks.

    Args:
        a: values.
        b: as many values, in the same order.

    Raises:
        InputError: there are fewer than two pairs, or all values of one are equal.

    >>> spearman([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    0.5
    """
    if len(a) != len(b) or len(set(a)) < 2 or len(set(b)) < 2:
        raise InputError('a rank correlation needs two lists of one length, each with two values that differ')
    x, y = _ranks(a), _ranks(b)
    mean = (len(a) + 1) / 2
    dot = lambda p, q: sum((i - mean) * (j - mean) for i, j in zip(p, q, strict=True))  # noqa: E731
    return float(dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)))


def _ranks(values: Sequence[float]) -> list[float]:
    """The ranks from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]
