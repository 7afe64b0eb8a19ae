"""Plot of held-out loss, or another metric, against bytes sent: the trade-off of all variants, and the Pareto front."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdist.report.canvas import COLOURS, FAINT, INK, figure, log_bytes, save, tidy
from jaxdist.report.scale import add_notes, direction, label, scored
from jaxdist.report.summary import Interval, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

SIDES = ((1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (0, 1), (0, -1), (0.4, 1), (0.4, -1), (-0.4, 1), (-0.4, -1))
REACH = (8, 16, 28, 44, 64, 90)
"""A label is placed on one of the SIDES of its mark, at the smallest REACH (in points) at which it covers nothing."""
WIDTH = 38
"""A label is wrapped at this number of letters."""
MANY = 10
"""Above this number of points, labels are numbers, and a legend beside the plot names them."""


class _Point(NamedTuple):
    name: str
    sent: float
    loss: Interval
    front: bool  # no other variant that sends as few bytes is better beyond chance


def frontier_plot(
    summaries: Sequence[Summary], path: Path, baseline: tuple[str, float] | None = None, metric: str = 'loss'
) -> 'Figure':
    """Draws held-out loss, or another metric, with its 95 % interval against the bytes that a worker sends in its run.

    Filled points are the Pareto front: no other variant that sends no more bytes is better, by the 95 % interval of the
    difference, which is paired by seed; with one seed, by the value. Variants that send nothing are left of a dotted
    line. Labels count diverged runs. Notes above the plot name the variants of which every run diverged, and those so
    far above the baseline loss that they would compress the scale of the others. Points are numbered if they are more
    than `MANY`, or if their labels would cover something.

    Args:
        summaries: the variants, from `summarise`.
        path: the file to write; its name ends in .png, .svg or .pdf.
        baseline: a name and a loss, drawn as a dashed line, or as a note if it is far from every point.
        metric: the metric.

    Returns:
        The figure that was written.

    Raises:
        InputError: if there is no variant to draw, if none has the metric, or for another suffix.
        ImportError: if matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> from jaxdist.report.summary import Score
    >>> exact = Summary('exact', 'mean()', 1, 0, {'loss': Score({0: 2.0})}, None, 8e6, 9e6, 61.0)
    >>> drawing = frontier_plot([exact, exact._replace(name='int8', sent=2e6)], Path(mkdtemp()) / 'frontier.png')
    >>> [text.get_text() for text in drawing.axes[0].texts]
    ['exact', 'int8']
    """
    pairs = scored(summaries, baseline, metric)
    points = _points(pairs, metric)
    better = pairs[0][0].metrics[metric].better

    def remark(axes: 'Axes') -> None:
        axes.set_ylabel(f'held-out {metric} ({direction(metric, better)}mean, 95 % interval)')
        add_notes(axes, summaries, baseline, 'y', metric)

    numbered = len(points) > MANY
    drawing, covered = _drawing(points, better, numbered, remark)
    if covered and not numbered:
        drawing, _ = _drawing(points, better, True, remark)
    return save(drawing, path)


def _drawing(
    points: Sequence[_Point], better: str, numbered: bool, remark: Callable[['Axes'], None]
) -> tuple['Figure', bool]:
    """The figure, and whether a label covers anything."""
    rows = sum(point.name.count('\n') + 1 for point in points)
    drawing = figure(12, max(5.4, 0.2 * rows + 0.6)) if numbered else figure(9, 5.4)
    axes = drawing.subplots()
    tidy(axes)
    xs = _place_bytes(axes, [point.sent for point in points])
    _draw_points(axes, points, xs, better)
    axes.margins(y=0.15)
    axes.set_xlabel('bytes sent per worker in the whole run')
    remark(axes)
    drawing.legend(loc='outside lower center', ncols=4, frameon=False)
    if numbered:
        points = _numbered(drawing, points)
    # Labels are placed in pixels, so the axes must have their final size, which they get when they are laid out.
    drawing.draw_without_rendering()
    drawing.set_layout_engine('none')
    return drawing, _label(axes, points, xs)


def _points(pairs: Sequence[tuple[Summary, Interval]], metric: str) -> list[_Point]:
    return [
        _Point(label(s, WIDTH), s.sent, value, not any(_dominates(other, s, metric) for other, _ in pairs))
        for s, value in pairs
    ]


def _dominates(one: Summary, other: Summary, metric: str) -> bool:
    """Whether one variant is better than another one for no more bytes, or as good for fewer."""
    if one.sent > other.sent or one is other:
        return False
    score = one.metrics[metric]
    mean, half, _ = score.minus(other.metrics[metric])
    gain = mean if score.better == 'higher' else -mean
    return gain > (half or 0) or (not mean and not half and one.sent < other.sent)


def _numbered(drawing: 'Figure', points: Sequence[_Point]) -> list[_Point]:
    """Adds a legend of all points beside the plot, and returns the points with numbers for names."""
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], linestyle='none', marker=f'${i}$', markersize=8 if i < 10 else 12, color=INK)
        for i in range(1, len(points) + 1)
    ]
    names = [point.name for point in points]
    drawing.legend(keys, names, loc='outside right center', frameon=False, fontsize=8.5, labelspacing=0.7)
    return [point._replace(name=str(i)) for i, point in enumerate(points, 1)]


def _place_bytes(axes: 'Axes', sent: Sequence[float]) -> list[float]:
    positive = [x for x in sent if x > 0]
    if not positive:
        axes.set_xticks([0], ['0 B'])
        return list(sent)
    log_bytes(axes, min(positive), max(positive))
    if all(sent):
        return list(sent)
    low, high = axes.get_xlim()
    # A logarithmic axis cannot show zero, which gets a separate strip at the left, a fifth as wide.
    strip = (high / low) ** 0.2
    ticks, labels = axes.get_xticks().tolist(), [label.get_text() for label in axes.get_xticklabels()]
    zero = low / strip**0.5
    axes.set_xlim(low / strip, high)
    axes.axvline(low, color=FAINT, linestyle=':')
    axes.set_xticks([zero, *ticks], ['0 B', *labels])
    return [x or zero for x in sent]


def _draw_points(axes: 'Axes', points: Sequence[_Point], xs: Sequence[float], better: str) -> None:
    marks = ((True, COLOURS[0], COLOURS[0], 'Pareto front'), (False, INK, 'white', 'dominated'))
    for front, colour, face, name in marks:
        chosen = [(x, *point.loss[:2]) for x, point in zip(xs, points, strict=True) if point.front is front]
        if chosen:
            x, mean, half = np.array(chosen, dtype=float).T  # a missing interval is NaN, which draws no bar
            bars = axes.errorbar(x, mean, half, fmt='o', color=colour, capsize=3, elinewidth=1, label=name)
            bars[0].set(markersize=7, markerfacecolor=face)
    x, mean = np.array(sorted((x, p.loss.mean) for x, p in zip(xs, points, strict=True) if p.front)).T
    best = np.maximum.accumulate(mean) if better == 'higher' else np.minimum.accumulate(mean)
    axes.step(x, best, where='post', color=COLOURS[0], alpha=0.35, linewidth=1.2, zorder=1)


def _label(axes: 'Axes', points: Sequence[_Point], xs: Sequence[float]) -> bool:
    """Writes each label beside its mark; returns whether one covers anything."""
    taken = _drawn(axes, points, xs)
    labels, leaders = np.empty((2, 0, 4))
    frame = np.array(axes.get_window_extent().extents)
    places = [(reach * x, reach * y) for reach in REACH for x, y in SIDES]
    at = [(x, point.loss.mean) for x, point in zip(xs, points, strict=True)]
    marks = axes.transData.transform(at)
    size = 5 * axes.figure.dpi / 72
    covers = False
    # From the top down, so that lines from distant labels to their marks rarely intersect.
    for index in sorted(range(len(points)), key=lambda index: -at[index][1]):
        text = axes.annotate(points[index].name, at[index], (0, 0), textcoords='offset points', fontsize=9.5)
        boxes = [(_moved(text, place), _leader(axes, marks[index], place)) for place in places]
        others = np.delete(marks, index, axis=0)
        drawn = np.vstack([taken, labels, leaders])
        obstacles = np.vstack([np.hstack([others - size, others + size]), labels, leaders])
        covered = [_covered(box, drawn, frame) + _length_over(leader, obstacles) for box, leader in boxes]
        # A leader goes over the interval of another mark only if no other place is left.
        intervals = np.delete(taken[: len(points)], index, axis=0)
        costs = [cost + _length_over(leader, intervals) for cost, (_, leader) in zip(covered, boxes, strict=True)]
        best = int(np.argmin(costs))
        covers |= covered[best] > 0
        _moved(text, places[best])
        labels, leaders = np.vstack([labels, boxes[best][0]]), np.vstack([leaders, boxes[best][1]])
        if len(boxes[best][1]):
            style = {'arrowstyle': '-', 'color': FAINT, 'linewidth': 0.8, 'shrinkA': 0, 'shrinkB': 4}
            axes.annotate('', at[index], places[best], textcoords='offset points', arrowprops=style)
    return covers


def _leader(axes: 'Axes', mark: np.ndarray, place: tuple[float, float]) -> np.ndarray:
    """Boxes [N, 4] along the line from a mark, in pixels, to a label at an offset in points; none for a near label."""
    if max(map(abs, place)) <= REACH[1]:
        return np.empty((0, 4))
    along = mark + np.linspace(0.1, 0.95, 30)[:, None] * np.array(place) * axes.figure.dpi / 72
    return np.concatenate([along - 1, along + 1], axis=1)


def _drawn(axes: 'Axes', points: Sequence[_Point], xs: Sequence[float]) -> np.ndarray:
    """The boxes [N, 4] of marks with intervals, then of lines, in pixels (left, bottom, right, top)."""
    mark = 5 * axes.figure.dpi / 72
    boxes: list[np.ndarray] = []
    for x, (_, _, loss, _) in zip(xs, points, strict=True):
        ends = axes.transData.transform([(x, loss.mean - (loss.half or 0)), (x, loss.mean + (loss.half or 0))])
        boxes.append(np.concatenate([ends[0] - mark, ends[1] + mark]))
    for line in axes.lines:
        path = np.asarray(line.get_transform().transform_path(line.get_path()).vertices)
        if line.get_linestyle() != 'None' and np.isfinite(path).all():
            boxes += [np.concatenate([np.minimum(a, b) - 2, np.maximum(a, b) + 2]) for a, b in pairwise(path)]
    return np.array(boxes)


def _moved(text: 'Annotation', place: tuple[float, float]) -> np.ndarray:
    """Moves a label to an offset from its mark, in points, and returns its box in pixels."""
    right, up = np.sign(place)
    text.set_position(place)
    text.set_horizontalalignment('center' if right == 0 else 'left' if right > 0 else 'right')
    text.set_verticalalignment('center' if right else 'bottom' if up > 0 else 'top')
    return np.array(text.get_window_extent().extents)


def _covered(box: np.ndarray, taken: np.ndarray, frame: np.ndarray) -> float:
    """The area, in pixels, in which `box` [4] overlaps the boxes `taken` [N, 4] or is outside the `frame` [4]."""
    outside = np.prod(box[2:] - box[:2]) - _overlap(box, frame[None])[0]
    return float(_overlap(box, taken).sum() + outside)


def _length_over(leader: np.ndarray, others: np.ndarray) -> float:
    """The area, in pixels, in which the boxes of a leader overlap `others` [N, 4]."""
    return float(_overlap(leader[:, None], others).sum())


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The areas in which `boxes` [..., 4] overlap `others` [..., 4]."""
    size = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    return np.asarray(np.prod(np.maximum(size, 0), axis=-1))
