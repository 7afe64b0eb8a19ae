"""Draws the reports of comparisons anew from the committed rows: `python experiments/redraw.py FOLDER...`

Writes the table, the page and the pictures; the numbers, and the page's command and facts, stay as they are. Curves
need the records of the runs, which `jaxdist compare` leaves in FOLDER/runs and which are not committed: without them
`curves.png` is not drawn anew, and the one that is there stays.
"""

import dataclasses
import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from jaxdist.training.compare import run_folder, variants
from jaxdist.training.comparison_report import draw_report
from jaxdist.training.experiment import Experiment, sweep
from jaxdist.training.run_folder import read_records


def page_details(html: str) -> tuple[str, dict[str, Any]]:
    """The title of a page, its command, and its folded details."""
    title, command = (re.search(pattern, html, re.DOTALL) for pattern in ('<h1>(.*?)</h1>', '<pre>(.*?)</pre>'))
    assert title is not None
    assert command is not None
    details: dict[str, Any] = {'command': unescape(command[1])}
    for key, text in re.findall('<details><summary>(.*?)</summary><pre>(.*?)</pre>', html, re.DOTALL):
        details[unescape(key)] = json.loads(unescape(text)) if text.startswith(('{', '[')) else unescape(text)
    return unescape(title[1]), details


def compared(command: str, updates: list[str]) -> list[Experiment]:
    """The experiments of a comparison: the sweep of its config, or one for each update line that its command names."""
    config = re.search(r'compare (\S+\.py)', command)
    assert config is not None
    every = [experiment for _, experiment in sweep(Path(__file__).parents[1] / config[1])]
    if [experiment.update for experiment in every] == updates:
        return every
    return [dataclasses.replace(every[0], update=update) for update in updates]


def redraw(folder: Path) -> None:
    """Writes the report of one comparison."""
    title, details = page_details((folder / 'index.html').read_text(encoding='utf-8'))
    rows = [json.loads(line) for line in (folder / 'rows.jsonl').read_text().splitlines()]
    keys = list(dict.fromkeys(row['update'] for row in rows))
    experiments = compared(details['command'], [key.partition('  #')[0] for key in keys])
    of = dict(zip(keys, variants(experiments), strict=True))
    records: dict[str, list[Any]] = {}
    for row in rows:
        name, experiment = of[row['update']]
        row['name'] = name
        runs = run_folder(folder, dataclasses.replace(experiment, seed=row['seed']))
        if row['held_out'] is not None and runs.exists():
            records.setdefault(name, []).append(read_records(runs))
    lost = not records and experiments[0].evaluate_every < experiments[0].steps
    draw_report(rows, None if lost else records, title, details, folder)


if __name__ == '__main__':
    for name in sys.argv[1:]:
        redraw(Path(name))
