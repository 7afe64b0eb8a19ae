"""Labels beside the ends of curves, which overlap neither each other nor the edge of the picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdist.report.canvas import INK, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

WIDTH = 36
"""A label is wrapped at this number of letters."""
GAP, LEADER, SIZE = 3, 30, 8.5
"""Points between labels, points between axes and labels, and points of the letters."""


class End(NamedTuple):
    """The end of a curve.

    Attributes:
        label: the curve's label.
        x: the x of its last point.
        y: the y of its last point.
        colour: its colour.
        marker: its marker.
    """

    label: str
    x: float
    y: float
    colour: str
    marker: str


def label_ends(axes: 'Axes', ends: Sequence[End]) -> None:
    """Writes the labels of curves right of `axes`, each joined with its curve's end by a line in the curve's colour.

    The figure is laid out, and grows if the labels need more height. Call it when all else is drawn, as later changes
    of the axes would move the ends of the curves.

    >>> from jaxdist.report.canvas import figure
    >>> axes = figure(6, 3).subplots()
    >>> _ = axes.plot([1, 2], [3, 4])
    >>> label_ends(axes, [End('mean()', 2, 4, 'black', 'o')])
    >>> [text.get_text() for text in axes.figure.texts]
    ['mean()']
    """
    if not ends:
        return
    drawing = axes.figure.figure
    point = drawing.dpi / 72
    texts = [drawing.text(0, 0, wrapped(end.label, WIDTH), fontsize=SIZE, color=INK, va='center') for end in ends]
    boxes = [text.get_window_extent() for text in texts]
    heights = np.array([box.height for box in boxes]) + GAP * point
    width, height = drawing.get_size_inches()
    drawing.set_size_inches(width, max(height, (heights.sum() / drawing.dpi) + 0.3))
    # The labels' column is kept free of everything else.
    column = (max(box.width for box in boxes) + (LEADER + 6) * point) / drawing.bbox.width
    drawing.set_layout_engine('constrained', rect=(0, 0, 1 - column, 1))
    drawing.draw_without_rendering()
    drawing.set_layout_engine('none')
    places = axes.transData.transform([(end.x, end.y) for end in ends])
    low, high = axes.get_window_extent().intervaly
    if heights.sum() > high - low:
        low, high = 2 * point, drawing.bbox.height - 2 * point
    centres = spread(places[:, 1], heights, low, high)
    left = axes.get_window_extent().x1 + LEADER * point
    for end, text, place, centre in zip(ends, texts, places, centres, strict=True):
        _join(text, end, place, (left, float(centre)))


def spread(wanted: np.ndarray, heights: np.ndarray, low: float, high: float) -> np.ndarray:
    """The centres of boxes with `heights` [N] that are nearest to `wanted` [N] without overlaps, from `low` to `high`.

    Nearest is by least squares: pool adjacent violators (isotonic regression) on centres minus the heights below.
    Boxes that are higher than the space altogether begin at `low`.

    >>> spread(np.array([5.0, 5.0, 1.0]), np.array([2.0, 2.0, 2.0]), 0.0, 10.0).tolist()
    [4.0, 6.0, 1.0]
    """
    order = np.argsort(wanted, kind='stable')
    above = np.cumsum(heights[order]) - heights[order] / 2  # the centres of boxes that are stacked from 0
    pools: list[list[float]] = []  # of boxes that touch: their mean shift from the stack, and their number
    for shift in wanted[order] - above:
        pools.append([float(shift), 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, n), (other, m) = pools[-2:]
            pools[-2:] = [[(one * n + other * m) / (n + m), n + m]]
    shifts = np.repeat([shift for shift, _ in pools], [int(n) for _, n in pools])
    centres = np.empty(len(wanted))
    centres[order] = above + np.clip(shifts, low, max(low, high - heights.sum()))
    return centres


def _join(text: 'Text', end: End, place: np.ndarray, at: tuple[float, float]) -> None:
    """Moves a label to a place in pixels, and draws its marker and the line to the end of its curve."""
    from matplotlib.lines import Line2D

    drawing = text.figure.figure
    size, point = (drawing.bbox.width, drawing.bbox.height), drawing.dpi / 72
    text.set_position(tuple(np.divide(at, size)))
    (x0, y0), (x1, y1) = np.divide(place, size), np.divide((at[0] - 7 * point, at[1]), size)
    leader = Line2D([x0, x1], [y0, y1], color=end.colour, linewidth=0.8, alpha=0.8)
    key = Line2D([x1], [y1], color=end.colour, marker=end.marker, markersize=6, linestyle='none')
    for line in (leader, key):
        line.set_transform(drawing.transFigure)
        drawing.add_artist(line)
