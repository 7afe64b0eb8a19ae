"""Reads the runs of a comparison, for the scripts in this folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist.report.summary import interval
from jaxdist.training.compare import run_folder
from jaxdist.training.experiment import Experiment, sweep
from jaxdist.training.run_folder import read_records

HERE = Path(__file__).parent
SEEDS = 3


class Run(NamedTuple):
    """One run: its experiment, folder and records."""

    experiment: Experiment
    folder: Path
    records: list[dict[str, Any]]

    def last(self, key: str) -> dict[str, Any]:
        """The last record that has this key."""
        return next(record for record in reversed(self.records) if key in record)

    def metric(self, name: str, key: str) -> list[float]:
        """A constraint's `value` or `multiplier` in every training record."""
        return [record['constraints'][name][key] for record in self.records if 'constraints' in record]


def variants(name: str) -> list[list[Run]]:
    """The runs of the sweep in configs/NAME.py, from the folder NAME beside this file: for each experiment, its seeds.

    Raises:
        SystemExit: a run is missing.
    """
    runs = []
    for _, base in sweep(HERE.parents[1] / 'configs' / f'{name}.py'):
        experiments = [dataclasses.replace(base, seed=seed) for seed in range(SEEDS)]
        folders = [run_folder(HERE / name, experiment) for experiment in experiments]
        if not all((folder / 'result.json').exists() for folder in folders):
            raise SystemExit(f'run it first: jaxdist compare configs/{name}.py --seeds {SEEDS}; see README.md')
        runs.append([Run(e, f, read_records(f)) for e, f in zip(experiments, folders, strict=True)])
    return runs


def mean_text(values: Sequence[float], digits: int = 3, sign: str = '') -> str:
    """The mean and half a 95 % interval (Student t over seeds)."""
    mean, half, _ = interval(values)
    return f'{mean:{sign}.{digits}f} ± {half:.{digits}f}'


def write(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Any) -> None:
    """Writes NAME.md, a table, and NAME.json, the numbers that it was computed from."""
    lines = [header, ['---'] * len(header), *([cell.replace('|', r'\|') for cell in row] for row in rows)]
    (HERE / f'{name}.md').write_text(''.join(f'| {" | ".join(line)} |\n' for line in lines))
    (HERE / f'{name}.json').write_text(json.dumps(numbers, indent=1) + '\n')
