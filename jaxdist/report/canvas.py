"""Common to all plots: figures without global state, colours, an axis of bytes, smoothing."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdist.core.errors import InputError, MissingExtraError
from jaxdist.report.text import bytes_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
"""Distinguishable for colour-blind readers too (Okabe and Ito, 2008)."""
INK, FAINT = '#333333', '#9a9a9a'


def figure(width: float, height: float) -> 'Figure':
    """An empty white figure, `width` by `height` inches, which is not registered with pyplot.

    Raises:
        ImportError: if matplotlib is not installed.

    >>> figure(4, 3).axes
    []
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'jaxdist[plot]'") from error
    return Figure(figsize=(width, height), dpi=160, layout='constrained', facecolor='white')


def save(drawing: 'Figure', path: Path) -> 'Figure':
    """Writes `drawing` as PNG or SVG, by the suffix of `path`, and returns it.

    Raises:
        InputError: if the suffix is neither .png nor .svg.
        OSError: if the file cannot be written.

    >>> save(figure(4, 3), Path('plot.bmp'))
    Traceback (most recent call last):
    jaxdist.InputError: a plot is written as .png or .svg, not as 'plot.bmp'
    """
    if path.suffix not in ('.png', '.svg'):
        raise InputError(f'a plot is written as .png or .svg, not as {path.name!r}')
    drawing.savefig(path)
    return drawing


def tidy(axes: 'Axes') -> None:
    """Removes the right and the top frame of `axes`, and draws a light grid.

    >>> axes = figure(4, 3).subplots()
    >>> tidy(axes)
    >>> axes.spines['right'].get_visible()
    False
    """
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(color='#e6e6e6', linewidth=0.8)
    axes.set_axisbelow(True)


def log_bytes(axes: 'Axes', low: float, high: float) -> None:
    """Makes the x axis logarithmic in bytes, from `low` > 0 to `high` with a margin.

    >>> axes = figure(4, 3).subplots()
    >>> log_bytes(axes, 1e6, 1e8)
    >>> [label.get_text() for label in axes.get_xticklabels()]
    ['1 MB', '10 MB', '100 MB']
    """
    # At least a decade, so that equal or nearly equal bytes still get ticks on both sides.
    margin = max((high / low) ** 0.08, math.sqrt(max(10 * low / high, 1)), 1.2)
    low, high = low / margin, high * margin
    axes.set_xscale('log')
    axes.minorticks_off()
    axes.set_xlim(low, high)
    ticks = [lead * 10.0**power for power in range(-1, 22) for lead in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    if len(shown) > 6:
        decades = [tick for tick in shown if math.log10(tick).is_integer()]
        shown = decades[:: math.ceil(len(decades) / 8)]
    axes.set_xticks(shown, [short_bytes(tick) for tick in shown])


def short_bytes(n: float) -> str:
    """`bytes_text` without trailing zeros.

    >>> short_bytes(1e6), short_bytes(2.5e6), short_bytes(0)
    ('1 MB', '2.5 MB', '0 B')
    """
    value, unit = bytes_text(n).split()
    return f'{value.rstrip("0").rstrip(".") if "." in value else value} {unit}'


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The centred moving average of `values` [N] over a `window` of an odd number of them; NaN stays NaN.

    Towards the ends the window shrinks on both sides alike: a one-sided mean would bend a falling curve.

    >>> smooth(np.array([9.0, 2.0, 1.0, 6.0]), 3).tolist()
    [9.0, 4.0, 3.0, 6.0]
    """
    known = np.isfinite(values)
    at = np.arange(len(values))
    reach = np.minimum(window // 2, np.minimum(at, at[::-1]))
    total = np.append(0, np.cumsum(np.where(known, values, 0)))
    count = np.append(0, np.cumsum(known))
    first, end = at - reach, at + reach + 1
    return np.where(known, (total[end] - total[first]) / np.maximum(count[end] - count[first], 1), np.nan)
