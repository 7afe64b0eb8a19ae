"""Compute times: how many seconds a step of a worker takes, by a distribution or as it was measured.

A clock names one in `Experiment.clock.compute`, as `lognormal(mean=0.05, sigma=0.3)`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.kinds import compute_time

Draw = Callable[[np.random.Generator, int, Any], tuple[np.ndarray, Any]]
"""`(generator, n, before) -> (seconds [n], after)` of the next n turns; `after` is `before` of the turns then."""


class ComputeTime(NamedTuple):
    """The compute times of workers.

    Attributes:
        draw: the seconds of one worker's turns; None if they were measured.
        measured: the measured seconds, [turns, workers]; None if they are drawn.
        source: where they were measured, for messages.
    """

    draw: Draw | None
    measured: np.ndarray | None = None
    source: str = ''


@compute_time(paper='none', examples={'constant(mean=0.05)': ()})
def constant(mean: float) -> ComputeTime:
    """Every turn takes the same time.

    Args:
        mean: seconds.

    Raises:
        InputError: `mean` is not above 0.

    >>> constant(mean=2.0).draw(np.random.default_rng(0), 2, None)[0]
    array([2., 2.])
    """
    _check_positive('constant', mean=mean)
    return ComputeTime(lambda generator, n, before: (np.full(n, float(mean)), before))


@compute_time(paper='none', examples={'lognormal(mean=0.05, sigma=0.3)': ()})
def lognormal(mean: float, sigma: float = 0.3) -> ComputeTime:
    """The logarithm of a turn's time has a normal distribution, independently in each turn.

    Args:
        mean: mean seconds of a turn.
        sigma: standard deviation of the logarithm.

    Raises:
        InputError: `mean` or `sigma` is not above 0.

    >>> bool(abs(lognormal(mean=2.0).draw(np.random.default_rng(0), 10_000, None)[0].mean() - 2) < 0.02)
    True
    """
    _check_positive('lognormal', mean=mean, sigma=sigma)
    scale = mean * np.exp(-(sigma**2) / 2)
    return ComputeTime(lambda generator, n, before: (scale * np.exp(sigma * generator.standard_normal(n)), before))


@compute_time(paper='Dutta et al. 2018, arXiv 1803.01113', examples={'exponential(mean=0.05)': ()})
def exponential(mean: float) -> ComputeTime:
    """A turn's time has an exponential distribution, independently in each turn.

    Args:
        mean: mean seconds of a turn.

    Raises:
        InputError: `mean` is not above 0.

    >>> bool(abs(exponential(mean=2.0).draw(np.random.default_rng(0), 10_000, None)[0].mean() - 2) < 0.05)
    True
    """
    _check_positive('exponential', mean=mean)
    return ComputeTime(lambda generator, n, before: (generator.exponential(mean, n), before))


@compute_time(paper='none', examples={'markov(mean=0.05, factor=5.0, enter=0.02, leave=0.2)': ()})
def markov(mean: float, factor: float = 5.0, enter: float = 0.02, leave: float = 0.2) -> ComputeTime:
    """A worker is slow for a while: a Markov chain with two states, usual and slow, in each of which times are equal.

    Args:
        mean: mean seconds of a turn, over both states.
        factor: how many times slower a slow turn is.
        enter: probability to become slow after a usual turn.
        leave: probability to become usual after a slow turn.

    Raises:
        InputError: `mean` or `factor` is not above 0, or a probability is not above 0 and at most 1.

    >>> bool(abs(markov(mean=2.0).draw(np.random.default_rng(0), 100_000, None)[0].mean() - 2) < 0.1)
    True
    """
    _check_positive('markov', mean=mean, factor=factor, enter=enter, leave=leave)
    for name, probability in (('enter', enter), ('leave', leave)):
        if probability > 1:
            raise InputError(f'markov: {name}={probability} must be a probability, above 0 and at most 1')
    share = enter / (enter + leave)
    usual = mean / (1 + share * (factor - 1))

    def draw(generator: np.random.Generator, n: int, before: Any) -> tuple[np.ndarray, Any]:
        chances = generator.random(n)
        slow = chances[0] < share if before is None else before
        states = np.empty(n, bool)
        for turn in range(n):
            if turn or before is not None:
                slow = chances[turn] >= leave if slow else chances[turn] < enter
            states[turn] = slow
        return np.where(states, factor * usual, usual), slow

    return ComputeTime(draw)


@compute_time(paper='none', examples={"measured(path='times.csv')": ()})
def measured(path: str) -> ComputeTime:
    """Times as they were measured: a CSV file with a row of seconds for each turn, and a column for each worker.

    A first row without numbers is the workers' names.

    Args:
        path: the file.

    Raises:
        InputError: there is no such file, or it does not have as many numbers above 0 in every row.

    >>> measured('nowhere.csv')
    Traceback (most recent call last):
    jaxdist.InputError: measured: there is no file 'nowhere.csv'
    """
    if not Path(path).is_file():
        raise InputError(f'measured: there is no file {path!r}')
    lines = [line.split(',') for line in Path(path).read_text('utf-8-sig').splitlines() if line.strip()]
    rows = lines[1:] if lines and not any(map(_is_number, lines[0])) else lines
    for number, row in enumerate(rows, 1 + len(lines) - len(rows)):
        if len(row) != len(rows[0]) or not all(_is_number(cell) and float(cell) > 0 for cell in row):
            raise InputError(
                f'measured: row {number} of {path} must have seconds above 0 of {len(rows[0])} workers, as the first '
                f'has: {",".join(row)!r}'
            )
    if not rows:
        raise InputError(f'measured: {path} has no rows')
    return ComputeTime(None, np.array(rows, float), path)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _check_positive(name: str, **values: float) -> None:
    for argument, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f'{name}: {argument}={value} must be a number above 0')
