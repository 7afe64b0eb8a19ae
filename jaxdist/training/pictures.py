"""The pictures of a comparison: each is drawn only where it shows something."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdist import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ('ranking', 'frontier', 'curves')
"""What a picture shows: the end of the runs, quality against bytes, or training; `KIND.png`, or `KIND-METRIC.png`."""


def draw_pictures(
    summaries: Sequence[report.Summary],
    records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] | None,
    baseline: tuple[str, float],
    folder: Path,
    formats: Sequence[str] = (),
) -> list[report.Picture]:
    """Draws the pictures of a comparison into its folder, and removes those of an earlier report that show nothing now.

    `ranking.png` has the final losses; `frontier.png`, where variants differ in the bytes that they send, losses
    against bytes; `curves.png`, where a run was evaluated twice or more, losses during training. Of every other metric
    there are the same, such as `ranking-accuracy.png`.

    Args:
        summaries: the variants, the baseline first.
        records: for each variant's name the records of its runs that did not diverge; None if they are lost, in which
            case curves that are there stay.
        baseline: the name and the loss of the best constant prediction.
        folder: the comparison's folder.
        formats: formats of the same pictures beside PNG: `svg`, `pdf`.

    Returns:
        The pictures, with their texts; none if every run diverged.

    >>> draw_pictures([], {}, ('entropy', 3.0), Path('nowhere'))
    []
    """
    for old in drawn(folder):
        if records is not None or not old.name.startswith('curves'):
            old.unlink()
    metrics = {name: score.better for summary in summaries for name, score in summary.metrics.items()}
    pictures = []
    for metric, better in metrics.items():
        chosen = [summary for summary in summaries if metric in summary.metrics]
        pictures += _ends(summaries, chosen, metric, baseline, folder, formats)
        path = _path(folder, 'curves', metric)
        runs = {s.name: records[s.name] for s in chosen if s.name in records} if records else {}
        if any(report.has_curve(run) for each in runs.values() for run in each):
            _also(formats, report.curves_plot(runs, path, baseline, metric, better), path)
        if path.exists():
            caption = f'Held-out {metric} during training. Bands reach from the lowest to the highest of all seeds.'
            alternative = f'Curves of the held-out {metric} of {len(chosen)} variants during training.'
            pictures.append(_picture(path, caption, alternative))
    return pictures


def drawn(folder: Path) -> list[Path]:
    """The pictures of comparisons in a folder, by kind and then by name.

    >>> drawn(Path('nowhere'))
    []
    """
    files = [path for path in sorted(folder.glob('*'), key=_name) if path.suffix in ('.png', '.svg', '.pdf')]
    return [path for kind in KINDS for path in files if path.stem.partition('-')[0] == kind]


def _ends(
    summaries: Sequence[report.Summary],
    chosen: Sequence[report.Summary],
    metric: str,
    baseline: tuple[str, float],
    folder: Path,
    formats: Sequence[str],
) -> list[report.Picture]:
    """The pictures of the end of the runs; `chosen` are the variants that have the metric."""
    path, best = _path(folder, 'ranking', metric), 'lowest' if metric == 'loss' else 'best'
    _also(formats, report.ranking_plot(summaries, path, baseline, metric), path)
    caption = (
        f'Held-out {metric} at the end of the run, the {best} at the top; the square is the baseline of differences.'
    )
    alternative = f'Dot plot of the final held-out {metric} of {len(chosen)} variants, the {best} at the top.'
    pictures = [_picture(path, caption, alternative)]
    if report.differ(summary.sent for summary in chosen):
        path = _path(folder, 'frontier', metric)
        _also(formats, report.frontier_plot(summaries, path, baseline, metric), path)
        caption = (
            f'Held-out {metric} against the bytes that a worker sends in the whole run. Filled points are the Pareto '
            'front: no other variant that sends no more bytes is better beyond the 95 % interval of the difference.'
        )
        alternative = f'Plot of the final held-out {metric} of {len(chosen)} variants against bytes sent per worker.'
        pictures.append(_picture(path, caption, alternative))
    return pictures


def _also(formats: Sequence[str], drawing: 'Figure', path: Path) -> None:
    """Writes a picture in further formats."""
    for suffix in formats:
        report.save(drawing, path.with_suffix(f'.{suffix}'))


def _name(path: Path) -> tuple[str, str]:
    return path.stem, path.suffix


def _path(folder: Path, kind: str, metric: str) -> Path:
    name = re.sub(r'[^\w.]+', '_', metric)
    return folder / (f'{kind}.png' if metric == 'loss' else f'{kind}-{name}.png')


def _picture(path: Path, caption: str, alternative: str) -> report.Picture:
    return report.Picture(path, caption, f'{alternative} The table has the numbers.')
