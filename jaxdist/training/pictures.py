"""The pictures of a comparison: each is drawn only where it shows something."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdist import report

NAMES = ('ranking.png', 'frontier.png', 'curves.png')


def draw_pictures(
    summaries: Sequence[report.Summary],
    records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] | None,
    baseline: tuple[str, float],
    folder: Path,
) -> list[report.Picture]:
    """Draws the pictures of a comparison into its folder, and removes those of an earlier report that show nothing now.

    `ranking.png` has the final losses; `frontier.png`, where variants differ in the bytes that they send, losses
    against bytes; `curves.png`, where a run was evaluated twice or more, losses during training.

    Args:
        summaries: the variants, the baseline first.
        records: for each variant's name the records of its runs that did not diverge; None if they are lost, in which
            case a `curves.png` that is there stays.
        baseline: the name and the loss of the best constant prediction.
        folder: the comparison's folder.

    Returns:
        The pictures, with their texts; none if every run diverged.

    >>> draw_pictures([], {}, ('entropy', 3.0), Path('nowhere'))
    []
    """
    for name in NAMES if records is not None else NAMES[:2]:
        (folder / name).unlink(missing_ok=True)
    drawn = [summary for summary in summaries if summary.held_out is not None]
    pictures = []

    def add(name: str, caption: str, alternative: str) -> None:
        pictures.append(report.Picture(folder / name, caption, f'{alternative} The table has the numbers.'))

    if drawn:
        report.ranking_plot(summaries, folder / NAMES[0], baseline)
        add(
            NAMES[0],
            'Held-out loss at the end of the run, the lowest at the top; the square is the baseline of differences.',
            f'Dot plot of the final held-out loss of {len(drawn)} variants, the lowest at the top.',
        )
    if report.differ(summary.sent for summary in drawn):
        report.frontier_plot(summaries, folder / NAMES[1], baseline)
        add(
            NAMES[1],
            'Held-out loss against the bytes that a worker sends in the whole run: lower left is better, and filled '
            'points are the Pareto front.',
            f'Plot of the final held-out loss of {len(drawn)} variants against bytes sent per worker.',
        )
    if any(report.has_curve(run) for runs in (records or {}).values() for run in runs):
        report.curves_plot(records or {}, folder / NAMES[2])
    if (folder / NAMES[2]).exists():
        add(
            NAMES[2],
            'Held-out loss during training. Bands reach from the lowest to the highest loss of all seeds.',
            f'Curves of the held-out loss of {len(drawn)} variants during training.',
        )
    return pictures
