"""What a plot of final losses shows: its variants' labels, and notes on what is off its scale."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxdist.report.canvas import COLOURS, note, wrapped
from jaxdist.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def label(summary: Summary, width: int) -> str:
    """A variant's name, wrapped at `width` letters, with a count of the runs that diverged.

    >>> label(Summary('mean()', 'mean()', 3, 1, None, None, None, 8, 9, 1.0), 40)
    'mean() (1 of 3 diverged)'
    """
    diverged = f' ({summary.diverged} of {summary.runs} diverged)' if summary.diverged else ''
    return wrapped(summary.name + diverged, width)


def on_scale(summaries: Sequence[Summary], baseline: tuple[str, float] | None) -> list[Summary]:
    """The variants that have a loss, without those further above the baseline loss than the best one is below it.

    >>> from jaxdist.report.summary import Interval
    >>> good, wild = (Summary('a', 'a()', 1, 0, Interval(loss, None, 1), None, None, 8, 9, 1.0) for loss in (2.0, 40.0))
    >>> on_scale([good, wild], ('entropy', 3.0)) == [good]
    True
    """
    known = [(s, s.held_out.mean) for s in summaries if s.held_out is not None]
    if baseline is None or not known:
        return [s for s, _ in known]
    reach = baseline[1] - min(mean for _, mean in known)
    return [s for s, mean in known if not mean - baseline[1] > reach > 0]


def add_notes(axes: 'Axes', summaries: Sequence[Summary], baseline: tuple[str, float] | None, axis: str) -> None:
    """Draws the baseline loss as a dashed line across `axis` ('x' or 'y'), and names above the plot what is off it.

    >>> from jaxdist.report.canvas import figure
    >>> axes = figure(9, 5).subplots()
    >>> add_notes(axes, [], ('entropy', 30.0), 'y')
    >>> axes.figure.get_suptitle()
    'entropy: 30.000, off the scale'
    """
    shown = on_scale(summaries, baseline)
    remarks = [f'{s.name}: every run diverged' for s in summaries if s.held_out is None]
    remarks += [f'{s.name}: {s.held_out.mean:.3g}, off the scale' for s in summaries if s.held_out and s not in shown]
    if baseline is not None:
        name, loss = baseline
        low, high = axes.get_ylim() if axis == 'y' else axes.get_xlim()
        if low - (high - low) <= loss <= high + (high - low):
            draw = axes.axhline if axis == 'y' else axes.axvline
            draw(loss, color=COLOURS[1], linestyle='--', linewidth=1.2, label=f'{name}: {loss:.3f}')
        else:
            remarks.append(f'{name}: {loss:.3f}, off the scale')
    note(axes, '; '.join(remarks))
