"""A plot of the losses and the held-out metrics of one run against steps and bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdist.report.canvas import COLOURS, FAINT, INK, figure, legend_below, save, scale_loss, short_bytes, smooth, tidy
from jaxdist.report.fields import Record, Series, evaluations, training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION = COLOURS[:2]
PANEL = 1.4
"""The height of a metric's panel, in inches."""


def loss_plot(
    records: Sequence[Record],
    path: Path,
    baseline: tuple[str, float] | None = None,
    metrics: Mapping[str, str] = MappingProxyType({}),
) -> 'Figure':
    """Draws one run: training loss, held-out loss, and if known the bytes sent per worker on a second axis.

    Each held-out metric has a panel below.

    Args:
        records: `{'step', 'loss', 'sent'}` of training and `{'step', 'held_out': {'loss'}}` of evaluations, in any
            order; of several for a step the last counts. Losses that are not finite are marked.
        path: the file to write; its name ends in .png, .svg or .pdf.
        baseline: a name and a loss, drawn as a dashed line.
        metrics: the held-out metrics to draw, and which of their values are better: `lower`, `higher`, or '' if not
            known.

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
    drawing = figure(9, 5 + PANEL * len(metrics))
    grid: Any = {'height_ratios': [4, *[PANEL] * len(metrics)]}
    axes, *panels = drawing.subplots(1 + len(metrics), sharex=True, squeeze=False, gridspec_kw=grid)[:, 0]
    tidy(axes)
    _draw_training(axes, train)
    _draw_held_out(axes, held_out)
    if baseline is not None:
        axes.axhline(baseline[1], color=INK, linestyle='--', linewidth=1.2, label=f'{baseline[0]}: {baseline[1]:.3f}')
    _mark_not_finite(axes, np.concatenate([s.step[np.isnan(s.loss)] for s in (train, held_out)]))
    scale_loss(axes, np.concatenate([train.loss, held_out.loss]))
    for panel, (name, better) in zip(panels, metrics.items(), strict=True):
        tidy(panel)
        values = evaluations(records, name)
        panel.plot(values.step, values.loss, color=VERMILLION, marker='o', markersize=5, linewidth=1.2)
        panel.set_ylabel(f'{name}\n({better} is better)' if better else name)
    drawing.axes[-1].set_xlabel('step')
    axes.set_ylabel('loss')
    _bytes_above(axes, train if train.sent is not None else held_out)
    legend_below(drawing)
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
