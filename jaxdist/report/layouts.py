"""A plot of the layouts of a model: the time of a step against the memory of a device, with the Pareto front."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxdist.core.errors import InputError
from jaxdist.report.canvas import COLOURS, FAINT, INK, figure, log_bytes, save, tidy, wrapped
from jaxdist.report.text import seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH = 48
"""Names are wrapped at this number of letters."""
FAR = 30
"""The memory of a device is not drawn if it is more times as large as the most that a layout needs."""
STEP = 1.4
"""A layout of the front is named if it needs so many times less memory than the one named before."""


class LayoutPoint(NamedTuple):
    """A layout in the plot.

    Attributes:
        name: its name.
        seconds: of a step.
        memory: bytes of a device.
        front: whether no other layout is as fast with less memory.
    """

    name: str
    seconds: float
    memory: float
    front: bool


def layout_plot(points: Sequence[LayoutPoint], memory: float, title: str, path: Path) -> 'Figure':
    """Draws the time of a step against memory, both in logarithmic scale, with the Pareto front.

    Along the front every `STEP` of memory one layout is numbered and named.

    Args:
        points: the layouts.
        memory: bytes of memory of a device, drawn as a line unless it is far more than any layout needs.
        title: the title.
        path: the file to write; its name ends in .png, .svg or .pdf.

    Raises:
        InputError: if there is no layout, or for another suffix.
        ImportError: if matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> points = [LayoutPoint('fsdp 8', 0.2, 4e9, True), LayoutPoint('model 8', 0.4, 6e9, False)]
    >>> drawing = layout_plot(points, 16e9, 'a model', Path(mkdtemp()) / 'layouts.png')
    >>> [text.get_text() for text in drawing.axes[0].texts]
    ['memory of a device', '1']
    """
    if not points:
        raise InputError('there is no layout to draw')
    drawing = figure(11, 5.4)
    axes = drawing.subplots()
    tidy(axes)
    axes.set_yscale('log')
    others = [p for p in points if not p.front]
    front = sorted((p for p in points if p.front), key=lambda p: p.seconds)
    axes.scatter([p.memory for p in others], [p.seconds for p in others], s=9, color=FAINT, alpha=0.5, linewidths=0)
    axes.plot([p.memory for p in front], [p.seconds for p in front], 'o-', color=COLOURS[0], markersize=4, linewidth=1)
    sizes = [p.memory for p in points]
    # A device that has far more would leave the picture empty.
    shown = [memory] if memory < FAR * max(sizes) else []
    log_bytes(axes, min(sizes + shown), max(sizes + shown))
    _seconds(axes, [p.seconds for p in points])
    top = axes.get_ylim()[1]
    for at in shown:
        axes.axvline(at, color=COLOURS[1], linewidth=1)
        axes.text(at, top, 'memory of a device', color=COLOURS[1], fontsize=9, rotation=90, va='top', ha='right')
    axes.set_xlabel('memory that a device needs, estimated')
    axes.set_ylabel('time of a step, estimated')
    axes.set_title(title, fontsize=10, loc='left')
    _name(drawing, front)
    return save(drawing, path)


def _seconds(axes: 'Axes', times: Sequence[float]) -> None:
    """The y axis in seconds, of a factor of five at least, so that times that are nearly equal look so."""
    low, high = min(times), max(times)
    margin = max((high / low) ** 0.08, (5 * low / high) ** 0.5)
    low, high = low / margin, high * margin
    ticks = [lead * 10.0**power for power in range(-8, 8) for lead in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    chosen = inside[:: -(-len(inside) // 10)]
    axes.set_yticks(chosen, [seconds_text(tick) for tick in chosen])
    axes.set_ylim(low, high)
    axes.minorticks_off()


def _name(drawing: 'Figure', front: Sequence[LayoutPoint]) -> None:
    """Numbers layouts of the front, and names them beside the plot."""
    from matplotlib.lines import Line2D

    named = list(front[:1])
    for point in front[1:]:
        if point.memory * STEP < named[-1].memory:
            named.append(point)
    for number, point in enumerate(named, 1):
        at = point.memory, point.seconds
        drawing.axes[0].annotate(str(number), at, (-3, -13), color=INK, fontsize=9, textcoords='offset points')
    keys = [Line2D([], [], linestyle='none', marker=f'${number}$', color=INK) for number in range(1, len(named) + 1)]
    names = [wrapped(point.name, WIDTH) for point in named]
    drawing.legend(keys, names, loc='outside right center', frameon=False, fontsize=8.5, labelspacing=0.7)
