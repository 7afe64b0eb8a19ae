"""A plot of constraints during training: values above, multipliers below."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.report.canvas import COLOURS, INK, figure, legend_below, note, save, tidy
from jaxdist.report.fields import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ('-', '--', ':', '-.')


def constraints_plot(records: Sequence[Record], path: Path, tolerance: float = 0.0) -> 'Figure':
    """Plots each constraint's value and multiplier over steps, and as dots its value over the examples of evaluations.

    Args:
        records: training records `{'step', 'constraints': {name: {'value', 'multiplier'}}}`, and evaluation records
            `{'step', 'judged': {'training': {name: value}}}`, in any order.
        path: the file to write, which ends in .png, .svg or .pdf.
        tolerance: the half-width of the grey band around 0.

    Returns:
        The figure that was written.

    Raises:
        InputError: no record has constraints, or another suffix.
        ImportError: matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> metrics = {'ball': {'value': 0.5, 'violation': 0.5, 'multiplier': 0.1}}
    >>> drawing = constraints_plot([{'step': 1, 'constraints': metrics}], Path(mkdtemp()) / 'constraints.png')
    >>> [axes.get_ylabel() for axes in drawing.axes]
    ['constraint (≤ 0 or = 0)', 'multiplier']
    """
    names = list(dict.fromkeys(name for record in records for name in record.get('constraints', {})))
    if not names:
        raise InputError('no record has constraints: there is nothing to plot')
    drawing = figure(9, 6)
    above, below = drawing.subplots(2, 1, sharex=True)
    for number, name in enumerate(names):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
        history = [(record['step'], record['constraints'][name]) for record in records if 'constraints' in record]
        for axes, key in ((above, 'value'), (below, 'multiplier')):
            points = _points((step, metrics.get(key)) for step, metrics in history)
            axes.plot(*points, color=colour, linestyle=style, linewidth=1.4, label=name if axes is above else None)
        judged = _points((r['step'], r['judged']['training'][name]) for r in records if 'judged' in r)
        above.plot(*judged, 'o', color=colour, markersize=5)
    above.axhspan(-tolerance, tolerance, color=INK, alpha=0.12, linewidth=0)
    for axes, label in ((above, 'constraint (≤ 0 or = 0)'), (below, 'multiplier')):
        tidy(axes)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_ylabel(label)
    tolerated = '; grey: the tolerance' if tolerance else ''
    note(above, f"lines: the step's batch; dots: all evaluated examples{tolerated}")
    below.set_xlabel('step')
    legend_below(drawing)
    return save(drawing, path)


def _points(pairs: Any) -> np.ndarray:
    """Steps and values, [2, N]; NaN where there is no value."""
    return np.array(list(pairs), float).reshape(-1, 2).T
