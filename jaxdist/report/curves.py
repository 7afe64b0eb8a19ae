"""Plots of losses against steps and bytes: of one run, and of the runs of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.report.canvas import COLOURS, FAINT, INK, figure, log_bytes, save, short_bytes, smooth, tidy
from jaxdist.report.fields import Record, Series, evaluations, training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION = COLOURS[:2]
STYLES = ('-', '--', ':', '-.')


class _Line(NamedTuple):
    label: str
    step: np.ndarray  # [N]
    sent: np.ndarray | None  # [N]
    loss: np.ndarray  # [runs, N]


def loss_plot(records: Sequence[Record], path: Path, baseline: tuple[str, float] | None = None) -> 'Figure':
    """Draws one run: training loss, held-out loss, and if known the bytes sent per worker on a second axis.

    Args:
        records: `{'step', 'loss', 'sent'}` of training and `{'step', 'held_out': {'loss'}}` of evaluations, in any
            order; of several for a step the last counts. Losses that are not finite are marked.
        path: the file to write; its name ends in .png or .svg.
        baseline: a name and a loss, drawn as a dashed line.

    Returns:
        The figure that was written.

    Raises:
        InputError: for records that cannot be drawn, or another suffix.
        ImportError: if matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / 'loss.png'
    >>> drawing = loss_plot([{'step': 1, 'loss': 3.0}, {'step': 2, 'loss': 2.5}], path, ('guessing', 4.0))
    >>> drawing.axes[0].get_ylabel(), path.exists()
    ('loss', True)
    """
    train, held_out = training(records), evaluations(records)
    drawing = figure(9, 5)
    axes = drawing.subplots()
    tidy(axes)
    _draw_training(axes, train)
    _draw_held_out(axes, held_out)
    if baseline is not None:
        axes.axhline(baseline[1], color=INK, linestyle='--', linewidth=1.2, label=f'{baseline[0]}: {baseline[1]:.3f}')
    _mark_not_finite(axes, np.concatenate([s.step[np.isnan(s.loss)] for s in (train, held_out)]))
    _scale_loss(axes, np.concatenate([train.loss, held_out.loss]))
    axes.set_xlabel('step')
    axes.set_ylabel('loss')
    _bytes_above(axes, train if train.sent is not None else held_out)
    drawing.legend(loc='outside lower center', ncols=3, frameon=False)
    return save(drawing, path)


def curves_plot(runs: Mapping[str, Sequence[Sequence[Record]]], path: Path) -> 'Figure':
    """Draws held-out loss against steps and, if known, bytes: the mean over seeds, in a band of all seeds.

    Args:
        runs: for each variant's name the records of its runs, one list per seed (see `loss_plot`). A run with a
            held-out loss that is not finite is left out of the mean, and the legend counts it.
        path: the file to write; its name ends in .png or .svg.

    Returns:
        The figure that was written.

    Raises:
        InputError: for no runs, a run without evaluations, or runs of one variant evaluated at different steps.
        ImportError: if matplotlib is not installed.

    >>> from tempfile import mkdtemp
    >>> run = [{'step': step, 'held_out': {'loss': 3.0 / step}} for step in (1, 2, 3)]
    >>> drawing = curves_plot({'exact': [run, run]}, Path(mkdtemp()) / 'curves.svg')
    >>> drawing.axes[0].lines[0].get_ydata().tolist()
    [3.0, 1.5, 1.0]
    """
    if not runs:
        raise InputError('no runs: nothing was run, so there are no curves')
    lines = [_line(name, seeds) for name, seeds in runs.items()]
    by_bytes = any(line.sent is not None and line.sent[-1] > 0 for line in lines)
    columns = max(1, min(3, 90 // max(len(line.label) for line in lines)))  # the drawing is about 100 letters wide
    drawing = figure(9, 4.6 + 0.2 * max(0, -(-len(lines) // columns) - 4))
    panels = drawing.subplots(1, 1 + by_bytes, sharey=True, squeeze=False)[0]
    for axes in panels:
        tidy(axes)
    _draw_curves(panels[0], lines, [line.step if line.loss.size else None for line in lines])
    panels[0].set_xlabel('step')
    seeds_differ = any(len(line.loss) > 1 for line in lines)
    panels[0].set_ylabel('held-out loss' + (' (mean; band: all seeds)' if seeds_differ else ''))
    _scale_loss(panels[0], np.concatenate([line.loss.ravel() for line in lines]))
    if by_bytes:
        _draw_bytes(panels[1], lines)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc='outside lower center', ncols=columns, frameon=False)
    return save(drawing, path)


def _draw_training(axes: 'Axes', train: Series) -> None:
    window = len(train.step) // 25 * 2 + 1  # odd, about a twelfth of the records
    if window == 1:
        axes.plot(train.step, train.loss, color=BLUE, marker='.', label='training')
        return
    axes.plot(train.step, train.loss, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(train.step, smooth(train.loss, window), color=BLUE, label=f'training (mean of {window} records)')


def _draw_held_out(axes: 'Axes', held_out: Series) -> None:
    if held_out.step.size:
        last = held_out.loss[-1]
        label = f'held-out (last: {"not finite" if np.isnan(last) else f"{last:.3f}"})'
        axes.plot(
            held_out.step,
            held_out.loss,
            color=VERMILLION,
            marker='o',
            markersize=5,
            linewidth=1.2,
            label=label,
        )


def _mark_not_finite(axes: 'Axes', steps: np.ndarray) -> None:
    if steps.size:
        label = f'not finite: {steps.size}, first at step {steps.min():g}'
        top = axes.get_xaxis_transform()
        axes.plot(steps, np.full(steps.size, 0.98), 'x', color=INK, transform=top, clip_on=False, label=label)


def _scale_loss(axes: 'Axes', losses: np.ndarray) -> None:
    known = losses[np.isfinite(losses)]
    # On a linear axis a first loss far above the rest would flatten the rest of the curve.
    if known.size and known.min() > 0 and known.max() > 20 * known.min():
        axes.set_yscale('log')


def _bytes_above(axes: 'Axes', series: Series) -> None:
    if series.sent is None or not series.sent[-1]:
        return
    step, sent = np.append(0, series.step), np.append(0, series.sent)
    ticks = axes.xaxis.get_major_locator().tick_values(0, sent[-1])
    ticks = [tick for tick in ticks if 0 <= tick <= sent[-1]]
    above = axes.twiny()
    above.spines['right'].set_visible(False)
    above.spines['top'].set_color(FAINT)
    above.set_xlim(axes.get_xlim())
    above.set_xticks(np.interp(ticks, sent, step), [short_bytes(tick) for tick in ticks])
    above.set_xlabel('bytes sent per worker')


def _line(name: str, seeds: Sequence[Sequence[Record]]) -> _Line:
    series = [evaluations(records) for records in seeds]
    if not series or not all(s.step.size for s in series):
        raise InputError(f'{name!r} has a run without evaluations: the curves are of held-out losses')
    ended = [s for s in series if np.isfinite(s.loss).all()]
    if any(not np.array_equal(s.step, ended[0].step) for s in ended):
        raise InputError(f'the runs of {name!r} were evaluated at different steps: they have no mean curve')
    diverged = len(series) - len(ended)
    label = f'{name} ({diverged} of {len(series)} diverged)' if diverged else name
    if not ended:
        return _Line(label, np.array([]), None, np.empty((0, 0)))
    sent = [s.sent for s in ended if s.sent is not None]
    mean = np.mean(sent, axis=0) if len(sent) == len(ended) else None
    return _Line(label, ended[0].step, mean, np.stack([s.loss for s in ended]))


def _draw_curves(axes: 'Axes', lines: Sequence[_Line], xs: Sequence[np.ndarray | None]) -> None:
    for index, (line, x) in enumerate(zip(lines, xs, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        style = STYLES[index // len(COLOURS) % len(STYLES)]
        if x is None:
            axes.plot([], [], color=colour, linestyle=style, label=line.label)
            continue
        mark = 'o' if len(x) == 1 else None  # a line through one point is invisible
        axes.plot(x, line.loss.mean(axis=0), color=colour, linestyle=style, label=line.label, marker=mark)
        axes.fill_between(x, line.loss.min(axis=0), line.loss.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def _draw_bytes(axes: 'Axes', lines: Sequence[_Line]) -> None:
    # A logarithmic axis cannot show evaluations before anything was sent.
    xs = [None if line.sent is None else np.where(line.sent > 0, line.sent, np.nan) for line in lines]
    xs = [None if x is None or np.isnan(x).all() else x for x in xs]
    known = np.concatenate([x for x in xs if x is not None])
    _draw_curves(axes, lines, xs)
    log_bytes(axes, float(np.nanmin(known)), float(np.nanmax(known)))
    axes.set_xlabel('bytes sent per worker')
    absent = [line.label for line, x in zip(lines, xs, strict=True) if x is None and line.loss.size]
    if absent:
        axes.set_title(f'nothing sent or recorded: {", ".join(absent)}', fontsize=9, color=INK)
