"""A plot of the final held-out loss of every variant of a comparison, from the lowest to the highest."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdist.report.canvas import COLOURS, FAINT, INK, figure, legend_below, save, scale_loss, tidy
from jaxdist.report.scale import add_notes, direction, label, scored
from jaxdist.report.summary import Summary
from jaxdist.report.tables import metric_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 44
"""Names are wrapped at this number of letters."""
LINE, GAP = 0.17, 0.1
"""Inches of a line of a name, and between names."""


def ranking_plot(
    summaries: Sequence[Summary], path: Path, baseline: tuple[str, float] | None = None, metric: str = 'loss'
) -> 'Figure':
    """Draws each variant's final held-out loss, or another metric, with its 95 % interval; the best mean is at the top.

    The first of `summaries`, to which the others are compared, is a square, and a dotted line shows its mean. Labels
    count diverged runs. Notes above the plot name the variants of which every run diverged, and those so far above
    the baseline loss that they would compress the scale of the others.

    Args:
        summaries: the variants, from `summarise`.
        path: the file to write; its name ends in .png, .svg or .pdf.
        baseline: a name and a loss, drawn as a dashed line, or as a note if it is far from every variant.
        metric: the metric.

    Returns:
        The figure that was written.

    Raises:
        InputError: if there is no variant to draw, if none has the metric, or for another suffix.
        ImportError: if matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> from jaxdist.report.summary import Score
    >>> exact = Summary('exact', 'mean()', 1, 0, {'loss': Score({0: 2.0})}, None, 8e6, 9e6, 61.0)
    >>> better = exact._replace(name='int8', metrics={'loss': Score({0: 1.5})})
    >>> drawing = ranking_plot([exact, better], Path(mkdtemp()) / 'ranking.png')
    >>> [tick.get_text() for tick in drawing.axes[0].get_yticklabels()]
    ['int8', 'exact']
    """
    pairs = scored(summaries, baseline, metric)
    better = pairs[0][0].metrics[metric].better
    pairs.sort(key=lambda pair: pair[1].mean, reverse=better == 'higher')
    names = [label(summary, WIDTH) for summary, _ in pairs]
    heights = np.array([GAP + LINE * (name.count('\n') + 1) for name in names])
    at = np.cumsum(heights) - heights / 2
    drawing = figure(9, 1.3 + heights.sum())
    axes = drawing.subplots()
    tidy(axes)
    axes.grid(visible=False, axis='y')
    means, halves = (np.array(values, float) for values in zip(*(loss[:2] for _, loss in pairs), strict=True))
    first = np.array([summary is summaries[0] for summary, _ in pairs])
    for chosen, colour, marker, name in ((~first, COLOURS[0], 'o', None), (first, INK, 's', summaries[0].name)):
        if chosen.any():
            # A missing interval is NaN, which draws no bar.
            bars = axes.errorbar(means[chosen], at[chosen], xerr=halves[chosen], fmt=marker, color=colour, capsize=3)
            bars.set_label(f'baseline: {name}' if name else None)
    if first.any():
        axes.axvline(float(means[first][0]), color=FAINT, linestyle=':', zorder=1)
    if metric == 'loss':
        scale_loss(axes, means, 'x')
    axes.set_yticks(at, names, fontsize=9)
    axes.tick_params('y', length=0)
    axes.set_ylim(heights.sum(), 0)
    values = axes.secondary_yaxis('right')
    values.set_yticks(at, [metric_text(metric, value) for _, value in pairs], fontsize=9)
    values.tick_params('y', length=0)
    values.spines['right'].set_visible(False)
    intervals = ', 95 % interval' if np.isfinite(halves).any() else ''
    axes.set_xlabel(f'held-out {metric} at the end of the run ({direction(metric, better)}mean{intervals})')
    add_notes(axes, summaries, baseline, 'x', metric)
    legend_below(drawing)
    return save(drawing, path)
