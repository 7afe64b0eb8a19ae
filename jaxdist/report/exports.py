"""Summaries and runs as files for other programs: LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxdist.report.summary import Interval, Summary
from jaxdist.report.tables import cells, notes

SYMBOLS = {
    '±': r'$\pm$', '↑': r'$\uparrow$', '↓': r'$\downarrow$', '—': '---', '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}', '>': r'\textgreater{}',
    '|': r'\textbar{}', **{letter: f'\\{letter}' for letter in '&%$#_{}'},
}  # fmt: skip
"""Symbols that LaTeX has another text for."""


def latex_table(summaries: Sequence[Summary]) -> str:
    r"""The table of `markdown_table` for LaTeX, with the rules of the package booktabs, and the notes as comments.

    Raises:
        InputError: if there are no summaries.

    >>> from jaxdist.report.summary import Score
    >>> line = Summary('int8, 50 %', 'a()', 1, 0, {'loss': Score({0: 2.0})}, None, 8e6, 9e6, 61.0)
    >>> print(latex_table([line]).splitlines()[4])
    int8, 50 \% & 2.000 & 8.00 MB & 9.00 MB & 1 min 01 s & 1 \\
    """
    header, rows = cells(summaries)
    body = [' & '.join(map(_latex, row)) + r' \\' for row in [header, *rows]]
    columns = 'l' + 'r' * (len(header) - 1)
    lines = [rf'\begin{{tabular}}{{{columns}}}', r'\toprule', body[0], r'\midrule', *body[1:], r'\bottomrule']
    return '\n'.join([*lines, r'\end{tabular}', *(f'% {text}' for text in notes(summaries))]) + '\n'


def csv_table(summaries: Sequence[Summary]) -> str:
    """One row of numbers for each variant: means, halves of 95 % intervals, bytes, seconds; empty where not known.

    >>> from jaxdist.report.summary import Score
    >>> print(csv_table([Summary('a', 'a()', 1, 0, {'loss': Score({0: 2.0})}, None, 8e6, 9e6, 61.0)]))
    variant,update,runs,diverged,loss,loss_half,difference,difference_half,violation,violation_half,sent,memory,seconds
    a,a(),1,0,2.0,,,,,,8000000.0,9000000.0,61.0
    """
    metrics = dict.fromkeys(['loss', *(name for s in summaries for name in s.metrics)])
    rows = []
    for s in summaries:
        row: dict[str, Any] = {'variant': s.name, 'update': s.update, 'runs': s.runs, 'diverged': s.diverged}
        intervals = {**{name: s.of(name) for name in metrics}, 'difference': s.difference, 'violation': s.violation}
        for name, value in intervals.items():
            mean, half, _ = value or Interval(None, None, 0)  # type: ignore[arg-type]
            row |= {name: mean, f'{name}_half': half}
        simulated = {} if s.simulated is None else {'simulated': s.simulated}
        rows.append(row | {'sent': s.sent, 'memory': s.memory, 'seconds': s.seconds, **simulated})
    return csv_text(rows)


def csv_runs(rows: Iterable[Mapping[str, Any]]) -> str:
    """One row for each run, as `pandas.read_csv` takes it: the rows of `summarise`, with a column for each metric.

    >>> print(csv_runs([{'name': 'a', 'seed': 0, 'held_out': 2.0, 'metrics': {'f1': 0.5}, 'better': {'f1': 'higher'}}]))
    name,seed,loss,f1
    a,0,2.0,0.5
    """
    flat = []
    for row in rows:
        single = {name: x for name, x in row.items() if name not in ('held_out', 'metrics', 'better', 'reached')}
        reached = {f'simulated_to_{target}': x for target, x in row.get('reached', {}).items()}
        flat.append(single | {'loss': row['held_out']} | (row.get('metrics') or {}) | reached)
    return csv_text(flat)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with a column for each name that any of them has.

    >>> print(csv_text([{'a': 1}, {'b': None}]))
    a,b
    1,
    ,
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _latex(text: str) -> str:
    return re.sub('|'.join(map(re.escape, SYMBOLS)), lambda match: SYMBOLS[match[0]], text)
