"""A plot of held-out losses during training, of the runs of a comparison."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.report.canvas import (
    COLOURS,
    FAINT,
    MARKERS,
    differ,
    figure,
    log_bytes,
    note,
    save,
    scale_loss,
    tidy,
)
from jaxdist.report.fields import Record, evaluations
from jaxdist.report.line_ends import End, label_ends
from jaxdist.report.scale import direction, highest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Curve(NamedTuple):
    label: str
    step: np.ndarray  # [N]
    sent: np.ndarray | None  # [N], NaN before anything was sent; None if nothing was, or it is not recorded
    simulated: np.ndarray | None  # [N], mean simulated seconds; None without a clock
    loss: np.ndarray  # [runs, N], or another metric
    final: float  # the mean of the losses at the end

    @property
    def last(self) -> float:
        return float(self.loss[:, -1].mean())


def has_curve(records: Sequence[Record]) -> bool:
    """Whether a run was evaluated after two or more steps.

    >>> has_curve([{'step': 2, 'held_out': {'loss': 2.5}}, {'step': 2, 'loss': 3.0}])
    False
    """
    return len(evaluations(records).step) > 1


def curves_plot(
    runs: Mapping[str, Sequence[Sequence[Record]]],
    path: Path,
    baseline: tuple[str, float] | None = None,
    metric: str = 'loss',
    better: str = 'lower',
) -> 'Figure':
    """Draws held-out loss, or another metric, against steps: means over seeds.

    Beside it against bytes, if variants differ in them, and against simulated seconds, if all have a clock.

    At most eight variants have a colour, a marker, a label at the end of the curve and a band of all seeds: the first,
    which is the baseline of differences, and those that end best. The others are grey, and a note counts them. Curves
    that end further above the baseline loss than the lowest ends below it are not drawn; a note names them.

    Args:
        runs: for each variant's name the records of its runs, one list per seed (see `loss_plot`). A run with a
            held-out loss that is not finite is left out of the mean, and the label counts it.
        path: the file to write; its name ends in .png, .svg or .pdf.
        baseline: a name and a loss, which limits what is drawn.
        metric: the metric.
        better: which of its values are better, `lower` or `higher`; '' if not known.

    Returns:
        The figure that was written.

    Raises:
        InputError: for no run with two or more evaluations, a run without any, or runs of one variant evaluated at
            different steps.
        ImportError: if matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> run = [{'step': step, 'held_out': {'loss': 3.0 / step}} for step in (1, 2, 3)]
    >>> drawing = curves_plot({'exact': [run, run]}, Path(mkdtemp()) / 'curves.svg')
    >>> drawing.axes[0].lines[0].get_ydata().tolist()
    [3.0, 1.5, 1.0]
    """
    every = [_curve(name, seeds, metric) for name, seeds in runs.items()]
    limit = highest([curve.final for curve in every if curve.loss.size], baseline)
    curves = [curve for curve in every if curve.loss.size and curve.final <= limit]
    if not any(len(curve.step) > 1 for curve in curves):
        raise InputError('no run has two or more evaluations: there is no curve; `ranking_plot` draws final losses')
    by_bytes = differ(float(curve.sent[-1]) if curve.sent is not None else 0.0 for curve in curves)
    by_seconds = all(curve.simulated is not None for curve in curves)
    drawing = figure(9 + 3 * (by_bytes + by_seconds), 4.8)
    # Steps are on the right, where all curves end at the labels.
    *others, by_step = drawing.subplots(1, 1 + by_bytes + by_seconds, sharey=True, squeeze=False)[0]
    chosen = _chosen(curves, better)
    ends = _draw(by_step, curves, [curve.step for curve in curves], chosen)
    by_step.set_xlabel('step')
    if by_seconds:
        _draw(others[-1], curves, [curve.simulated for curve in curves], chosen)
        others[-1].set_xlabel('simulated seconds')
    for axes in others[:by_bytes]:
        _draw(axes, curves, [curve.sent for curve in curves], chosen)
        known = np.concatenate([curve.sent for curve in curves if curve.sent is not None])
        log_bytes(axes, float(np.nanmin(known)), float(np.nanmax(known)))
        axes.set_xlabel('bytes sent per worker')
    several = any(len(curve.loss) > 1 for curve in curves)
    remarks = f'{direction(metric, better)}mean; band: all seeds' if several else direction(metric, better).rstrip('; ')
    drawing.axes[0].set_ylabel(f'held-out {metric}' + (f' ({remarks})' if remarks else ''))
    if metric == 'loss':
        scale_loss(by_step, np.concatenate([curve.loss.ravel() for curve in curves]))
    note(by_step, _notes(every, curves, chosen, by_bytes))
    label_ends(by_step, ends)
    return save(drawing, path)


def _curve(name: str, seeds: Sequence[Sequence[Record]], metric: str) -> _Curve:
    series = [evaluations(records, metric) for records in seeds]
    if not series or not all(s.step.size for s in series):
        raise InputError(f'{name!r} has a run without evaluations: the curves are of held-out losses')
    ended = [s for s in series if np.isfinite(s.loss).all()]
    if any(not np.array_equal(s.step, ended[0].step) for s in ended):
        raise InputError(f'the runs of {name!r} were evaluated at different steps: they have no mean curve')
    lost, what = len(series) - len(ended), 'diverged' if metric == 'loss' else 'not finite'
    label = f'{name} ({lost} of {len(series)} {what})' if lost else name
    if not ended:
        return _Curve(label, np.array([]), None, None, np.empty((0, 0)), math.nan)
    sent = [s.sent for s in ended if s.sent is not None]
    mean = np.mean(sent, axis=0) if len(sent) == len(ended) else np.zeros(1)
    # A logarithmic axis cannot show evaluations before anything was sent.
    known = np.where(mean > 0, mean, np.nan) if mean[-1] > 0 else None
    final = float(np.nanmean([evaluations(records).loss[-1] for records in seeds]))
    simulated = [s.simulated for s in ended if s.simulated is not None]
    seconds = np.mean(simulated, axis=0) if len(simulated) == len(ended) else None
    return _Curve(label, ended[0].step, known, seconds, np.stack([s.loss for s in ended]), final)


def _chosen(curves: Sequence[_Curve], better: str) -> list[int]:
    """The indices of the curves that have a colour."""
    first, *others = range(len(curves))
    best = sorted(others, key=lambda index: curves[index].last, reverse=better == 'higher')
    return sorted([first, *best[: len(COLOURS) - 1]])


def _draw(axes: 'Axes', curves: Sequence[_Curve], xs: Sequence[np.ndarray | None], chosen: Sequence[int]) -> list[End]:
    """Draws the curves, and returns the ends of those that have a colour."""
    tidy(axes)
    ends = []
    for index, (curve, x) in enumerate(zip(curves, xs, strict=True)):
        if x is None:
            continue
        mean = curve.loss.mean(axis=0)
        if index not in chosen:
            axes.plot(x, mean, color=FAINT, linewidth=0.9, alpha=0.7, marker='.' if len(x) == 1 else None, zorder=1.5)
            continue
        colour, marker = COLOURS[chosen.index(index)], MARKERS[chosen.index(index)]
        every = max(1, len(x) // 8)
        axes.plot(x, mean, color=colour, linewidth=1.5, marker=marker, markersize=5, markevery=every)
        axes.fill_between(x, curve.loss.min(axis=0), curve.loss.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        ends.append(End(curve.label, float(x[-1]), float(mean[-1]), colour, marker))
    return ends


def _notes(every: Sequence[_Curve], curves: Sequence[_Curve], chosen: Sequence[int], by_bytes: bool) -> str:
    """What the curves with labels do not show; `curves` are those of `every` that are drawn."""
    notes = []
    if grey := [curve.last for index, curve in enumerate(curves) if index not in chosen]:
        notes.append(f'grey: {len(grey)} more variants, which end between {min(grey):.3g} and {max(grey):.3g}')
    far = [curve for curve in every if curve.loss.size and not any(curve is other for other in curves)]
    notes += [f'{curve.label}: loss {curve.final:.3g}, off the scale' for curve in far]
    if by_bytes and (silent := [curve.label for curve in curves if curve.sent is None]):
        notes.append(f'nothing sent or recorded: {", ".join(silent)}')
    if lost := [curve.label for curve in every if not curve.loss.size]:
        notes.append(f'not drawn: {", ".join(lost)}')
    return '; '.join(notes)
