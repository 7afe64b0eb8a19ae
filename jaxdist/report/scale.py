"""What a plot of final losses shows: its variants' labels, and notes on what is off its scale."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxdist.core.errors import InputError
from jaxdist.report.canvas import COLOURS, note, wrapped
from jaxdist.report.summary import Interval, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def label(summary: Summary, width: int) -> str:
    """A variant's name, wrapped at `width` letters, with a count of the runs that diverged.

    >>> label(Summary('mean()', 'mean()', 3, 1, {}, None, 8, 9, 1.0), 40)
    'mean() (1 of 3 diverged)'
    """
    diverged = f' ({summary.diverged} of {summary.runs} diverged)' if summary.diverged else ''
    return wrapped(summary.name + diverged, width)


def on_scale(summaries: Sequence[Summary], baseline: tuple[str, float] | None) -> list[Summary]:
    """The variants that have a loss, without those above `highest`.

    >>> from jaxdist.report.summary import Score
    >>> good, wild = (Summary('a', 'a()', 1, 0, {'loss': Score({0: x})}, None, 8, 9, 1.0) for x in (2.0, 40.0))
    >>> on_scale([good, wild], ('entropy', 3.0)) == [good]
    True
    """
    known = [(s, s.held_out.mean) for s in summaries if s.held_out is not None]
    limit = highest([mean for _, mean in known], baseline)
    return [s for s, mean in known if mean <= limit]


def highest(losses: Sequence[float], baseline: tuple[str, float] | None) -> float:
    """The highest loss on the scale: as far above the baseline loss as the best of `losses` is below it.

    >>> highest([2.0, 2.5, 40.0], ('entropy', 3.0)), highest([2.0], None)
    (4.0, inf)
    """
    if baseline is None or not losses or min(losses) >= baseline[1]:
        return math.inf
    return 2 * baseline[1] - min(losses)


def scored(
    summaries: Sequence[Summary], baseline: tuple[str, float] | None, metric: str
) -> list[tuple[Summary, Interval]]:
    """The variants to draw, with the metric's means: those that have it, and whose loss is on the scale.

    Raises:
        InputError: there is none.

    >>> from jaxdist.report.summary import Score
    >>> metrics = {'loss': Score({0: 2.0}), 'auc': Score({0: 0.9}, 'higher')}
    >>> scored([Summary('a', 'a()', 1, 0, metrics, None, 8, 9, 1.0)], None, 'auc')[0][1].mean
    0.9
    """
    pairs = [(s, value) for s in on_scale(summaries, baseline) if (value := s.of(metric)) is not None]
    if not pairs:
        raise InputError(
            f'no variant to draw: there are no summaries, or every run diverged, or none has the metric {metric!r}'
        )
    return pairs


def direction(metric: str, better: str) -> str:
    """Which values of a metric are better, as the beginning of a remark; nothing for a loss.

    >>> direction('auc', 'higher'), direction('loss', 'lower')
    ('higher is better; ', '')
    """
    return f'{better} is better; ' if better and metric != 'loss' else ''


def add_notes(
    axes: 'Axes', summaries: Sequence[Summary], baseline: tuple[str, float] | None, axis: str, metric: str = 'loss'
) -> None:
    """Draws the baseline loss as a dashed line across `axis` ('x' or 'y'), and names above the plot what is off it.

    With another metric it names those whose loss is off the scale, and those that lack the metric.

    >>> from jaxdist.report.canvas import figure
    >>> axes = figure(9, 5).subplots()
    >>> add_notes(axes, [], ('entropy', 30.0), 'y')
    >>> axes.figure.get_suptitle()
    'entropy: 30.000, off the scale'
    """
    shown = on_scale(summaries, baseline)
    remarks = [f'{s.name}: every run diverged' for s in summaries if s.held_out is None]
    what = '' if metric == 'loss' else 'loss '
    far = [(s.name, s.held_out.mean) for s in summaries if s.held_out and s not in shown]
    remarks += [f'{name}: {what}{loss:.3g}, off the scale' for name, loss in far]
    remarks += [f'{s.name}: no {metric}' for s in shown if s.of(metric) is None]
    if baseline is not None and metric == 'loss':
        name, loss = baseline
        low, high = axes.get_ylim() if axis == 'y' else axes.get_xlim()
        if low - (high - low) <= loss <= high + (high - low):
            draw = axes.axhline if axis == 'y' else axes.axvline
            draw(loss, color=COLOURS[1], linestyle='--', linewidth=1.2, label=f'{name}: {loss:.3f}')
        else:
            remarks.append(f'{name}: {loss:.3f}, off the scale')
    note(axes, '; '.join(remarks))
