"""A Gantt picture of simulated time: a row for each worker, a bar for each step that it computes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdist.report.canvas import COLOURS, FAINT, figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 32
"""At most so many workers are drawn, the first and the last."""


def gantt_plot(begins: np.ndarray, compute: np.ndarray, path: Path) -> 'Figure':
    """Draws when workers compute; in between they wait, for others or for the link.

    Args:
        begins: when each worker begins each step, in seconds [T, W].
        compute: seconds that it computes then [T, W].
        path: the file to write; its name ends in .png, .svg or .pdf.

    Returns:
        The figure that was written.

    Raises:
        ImportError: if matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> drawing = gantt_plot(np.array([[0.0, 0.0]]), np.array([[1.0, 2.0]]), Path(mkdtemp()) / 'gantt.svg')
    >>> [text.get_text() for text in drawing.axes[0].get_yticklabels()]
    ['0', '1']
    """
    count = begins.shape[1]
    workers = [*range(count)] if count <= MOST else [*range(MOST // 2), *range(count - MOST // 2, count)]
    drawing = figure(10, 1.4 + 0.28 * len(workers))
    axes = drawing.subplots()
    tidy(axes)
    end = float((begins + compute).max())
    for row, worker in enumerate(workers):
        bars = list(zip(begins[:, worker], compute[:, worker], strict=True))
        axes.broken_barh([(0, end)], (row - 0.1, 0.2), color=FAINT, linewidth=0)
        axes.broken_barh(bars[::2], (row - 0.38, 0.76), color=COLOURS[0], linewidth=0)
        axes.broken_barh(bars[1::2], (row - 0.38, 0.76), color=COLOURS[0], alpha=0.6, linewidth=0)
    axes.set_yticks(range(len(workers)), [str(worker) for worker in workers])
    axes.invert_yaxis()
    axes.set_ylabel('worker')
    axes.set_xlabel('simulated seconds; bars are steps, light and dark in turn, and the gaps are waiting')
    return save(drawing, path)
