"""Common to all plots: figures without global state, colours, an axis of bytes, smoothing."""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdist.core.errors import InputError, MissingExtraError
from jaxdist.core.files import refuse_link
from jaxdist.report.text import bytes_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#F0E442')
"""Distinguishable for colour-blind readers too (Okabe and Ito, 2008); yellow, the faintest on white, is the last."""
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
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
    """Writes `drawing` as PNG, SVG or PDF, by the suffix of `path`, and returns it.

    Raises:
        InputError: if the suffix is another one.
        OSError: if the file cannot be written, or is a symbolic link.

    >>> save(figure(4, 3), Path('plot.bmp'))
    Traceback (most recent call last):
    jaxdist.InputError: a plot is written as .png, .svg or .pdf, not as 'plot.bmp'
    """
    if path.suffix not in ('.png', '.svg', '.pdf'):
        raise InputError(f'a plot is written as .png, .svg or .pdf, not as {path.name!r}')
    refuse_link(path)
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


def wrapped(text: str, width: int) -> str:
    """`text` in lines of about `width` letters, which break at spaces; words that are much longer break too.

    >>> wrapped('mean(codec=int8(), feedback=True)', 20)
    'mean(codec=int8(),\\nfeedback=True)'
    """
    longest = max(map(len, text.split()), default=0)
    return textwrap.fill(text, max(width, longest if longest <= 1.3 * width else 0), break_on_hyphens=False)


def legend_below(drawing: 'Figure') -> None:
    """Adds a legend below the plots, in as many columns as fit the width of `drawing`; long labels are wrapped.

    >>> drawing = figure(4, 3)
    >>> _ = drawing.subplots().plot([1, 2], label='loss')
    >>> legend_below(drawing)
    >>> [text.get_text() for text in drawing.legends[0].get_texts()]
    ['loss']
    """
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    letters = int(drawing.get_figwidth() * 10)
    labels = [wrapped(label, letters - 10) for label in labels]
    longest = max((len(line) for label in labels for line in label.split('\n')), default=0)
    columns = max(1, min(3, letters // (longest + 8)))
    drawing.legend(handles, labels, loc='outside lower center', ncols=columns, frameon=False)


def note(axes: 'Axes', text: str) -> None:
    """Writes a note above all plots of a figure; nothing if the text is empty.

    >>> axes = figure(4, 3).subplots()
    >>> note(axes, 'not drawn: mean()')
    >>> axes.figure.get_suptitle()
    'not drawn: mean()'
    """
    drawing = axes.figure.figure
    if text:
        letters = int(12 * drawing.get_figwidth())  # an inch has 13 to 16 small letters
        drawing.suptitle(wrapped(text, letters), x=0.01, ha='left', fontsize=9, color=INK)


def scale_loss(axes: 'Axes', losses: np.ndarray, axis: str = 'y') -> None:
    """Makes an axis of `losses` logarithmic where the largest is over 20 times the smallest.

    >>> axes = figure(4, 3).subplots()
    >>> scale_loss(axes, np.array([0.1, np.nan, 3.0]))
    >>> axes.get_yscale(), axes.get_xscale()
    ('log', 'linear')
    """
    known = losses[np.isfinite(losses)]
    # On a linear axis a first loss far above the rest would flatten the rest of the curve.
    if known.size and known.min() > 0 and known.max() > 20 * known.min():
        axes.set(**{f'{axis}scale': 'log'})


def differ(values: Iterable[float]) -> bool:
    """Whether values differ by more than 1 %; then an axis of them shows something.

    >>> differ([100.0, 100.5]), differ([100.0, 200.0]), differ([0.0, 1.0]), differ([])
    (False, True, True, False)
    """
    known = list(values)
    return bool(known) and max(known) > 1.01 * min(known)


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
