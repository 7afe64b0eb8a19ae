"""Summaries as a table: its cells, its notes, and Markdown."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.report.summary import Interval, Summary, best
from jaxdist.report.text import bytes_text, decimals, ratio_text, seconds_text

NOTHING = '—'
"""The text of a cell without a number."""

ARROWS = {'higher': ' ↑', 'lower': ' ↓'}
"""What follows a metric's name: which of its values are better."""


def interval_text(value: Interval | None, *, scale: float = 1, sign: str = '', unit: str = '') -> str:
    """A mean with half its interval, both times `scale`, to two digits of the interval; a dash for None.

    >>> interval_text(Interval(0.12345, 0.0021, 3)), interval_text(Interval(0.5, None, 1), scale=100, unit=' %')
    ('0.1235 ± 0.0021', '50.000 %')
    """
    if value is None:
        return NOTHING
    half = None if value.half is None else value.half * scale
    kind = f'{decimals(half)}f' if abs(value.mean * scale) < 1e6 else '3g'
    text = f'{value.mean * scale:{sign}.{kind}}'
    return f'{text}{unit}' if half is None else f'{text} ± {half:.{kind}}{unit}'


def cells(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The cells of the table as text: the header, and one row per summary.

    Columns without any number are left out, such as the difference if there is one variant.

    Args:
        summaries: the variants, the baseline first.

    Raises:
        InputError: if there are no summaries.

    >>> from jaxdist.report.summary import Score
    >>> header, rows = cells([Summary('a', 'a()', 1, 0, {'loss': Score({0: 2.0})}, None, 8e6, 9e6, 61.0)])
    >>> dict(zip(header, rows[0], strict=True))['sent per worker']
    '8.00 MB'
    """
    if not summaries:
        raise InputError('no summaries: a table needs at least one variant')
    first = summaries[0]
    metrics = {name: score.better for s in summaries for name, score in s.metrics.items() if name != 'loss'}
    columns: dict[str, Callable[[Summary], str]] = {
        'variant': lambda s: s.name,
        'held-out loss': lambda s: interval_text(s.held_out) if s.held_out else 'diverged',
        f'minus {first.name}': lambda s: interval_text(s.difference, sign='+'),
        **{_head(name, better): partial(_metric, name) for name, better in metrics.items()},
        'violation in training': lambda s: interval_text(s.violation),
        'sent per worker': lambda s: _against(s.sent, first.sent, s is first),
        'memory per device': lambda s: _against(s.memory, first.memory, s is first),
        'time': lambda s: seconds_text(s.seconds),
        'simulated time': lambda s: NOTHING if s.simulated is None else seconds_text(s.simulated),
        **{f'simulated time to {target}': partial(_reached, target) for s in summaries for target in s.reached},
        'seeds': lambda s: f'{s.runs}, {s.diverged} diverged' if s.diverged else f'{s.runs}',
    }
    table = {head: [cell(s) for s in summaries] for head, cell in columns.items()}
    kept = [head for head, column in table.items() if set(column) != {NOTHING}]
    return kept, [list(row) for row in zip(*(table[head] for head in kept), strict=True)]


def notes(summaries: Sequence[Summary]) -> list[str]:
    """Notes that explain the table: how intervals are computed, which runs diverged, what bold means.

    >>> from jaxdist.report.summary import Score
    >>> notes([Summary('a', 'a()', 1, 0, {'loss': Score({0: 2.0})}, None, 8, 8, 1.0)])
    ['One seed only: no interval, and a difference may be chance.']
    """
    counts = [s.held_out.n for s in summaries if s.held_out is not None]
    texts = []
    if any(n > 1 for n in counts):
        texts.append('± is half a 95 % interval (Student t over seeds); sent, memory and time are medians.')
    if any(n == 1 for n in counts):
        condition = 'One seed only' if max(counts) == 1 else 'Where one seed is left'
        texts.append(f'{condition}: no interval, and a difference may be chance.')
    if arrows := {ARROWS.get(score.better) for s in summaries for name, score in s.metrics.items() if name != 'loss'}:
        known = ', '.join(f'{arrow.strip()} {better} is better' for better, arrow in ARROWS.items() if arrow in arrows)
        texts += [f'{known}.'] if known else []
    if len(summaries) > 1:
        texts.append(f'Differences to {summaries[0].name} are paired by seed, where neither run diverged.')
    if (index := best(summaries)) is not None:
        texts.append(
            f'Bold: {summaries[index].name} has the lowest loss, and the interval of its difference to '
            f'{summaries[0].name} excludes 0 (not corrected for the number of variants).'
        )
    texts += [f'{s.name}: {s.diverged} of {s.runs} runs diverged; {_treated(s)}' for s in summaries if s.diverged]
    return texts


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The table in Markdown, padded so that its source is readable too, then the update lines in full and the notes.

    Raises:
        InputError: if there are no summaries.

    >>> from jaxdist.report.summary import Score
    >>> line = Summary('a', 'a()', 1, 0, {'loss': Score({0: 2.0})}, None, 8e6, 9e6, 61.0)
    >>> print(markdown_table([line]).splitlines()[2])
    | a    |         2.000 |         8.00 MB |         9.00 MB | 1 min 01 s |     1 |
    """
    header, rows = cells(summaries)
    bold = best(summaries)
    body = [[_escaped(cell) for cell in row] for row in [header, *rows]]
    if bold is not None:
        body[bold + 1][:2] = [f'**{cell}**' for cell in body[bold + 1][:2]]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    rule = ['-' * widths[0], *(f'{"-" * (width - 1)}:' for width in widths[1:])]
    table = [_padded(row, widths) for row in (body[0], rule, *body[1:])]
    lines = [f'- {_escaped(s.name)}: `{s.update}`' for s in summaries if s.name != s.update]
    return '\n'.join([*table, '', *lines, *([''] if lines else []), *map(_escaped, notes(summaries))]) + '\n'


def metric_text(name: str, value: Interval | None) -> str:
    """The mean of a metric with half its interval; an accuracy is a percentage.

    >>> metric_text('accuracy', Interval(0.5, 0.02, 3)), metric_text('auc', Interval(0.5, 0.02, 3))
    ('50.0 ± 2.0 %', '0.500 ± 0.020')
    """
    return interval_text(value, scale=100, unit=' %') if name == 'accuracy' else interval_text(value)


def _head(name: str, better: str) -> str:
    return name + ARROWS.get(better, '')


def _metric(name: str, summary: Summary) -> str:
    """A metric's cell, with the number of runs where it is not that of all that ended."""
    text, runs = metric_text(name, summary.of(name)), summary.runs - summary.diverged
    known = len(summary.metrics[name].values) if name in summary.metrics else runs
    return text if known == runs else f'{text}, {known} of {runs} seeds'


def _reached(target: str, summary: Summary) -> str:
    """The median time to a target, with the number of runs that reach it where it is not that of all."""
    times = list(summary.reached.get(target, {}).values())
    if not times:
        return 'not reached'
    text = seconds_text(float(np.median(times)))
    return text if len(times) == summary.runs else f'{text}, {len(times)} of {summary.runs} seeds'


def _against(value: float, first: float, is_first: bool) -> str:
    ratio = '' if is_first else ratio_text(value, first)
    return f'{bytes_text(value)}, {ratio}' if ratio else bytes_text(value)


def _treated(summary: Summary) -> str:
    return (
        'its bytes and time are those of the diverged runs.' if summary.held_out is None else 'left out of the means.'
    )


def _escaped(text: str) -> str:
    return re.sub(r'([\\`*<|\[])', r'\\\1', text)


def _padded(row: Iterable[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return f'| {first[0]:<{first[1]}} | {" | ".join(f"{cell:>{width}}" for cell, width in others)} |'
