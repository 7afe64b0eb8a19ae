"""Draws held-out loss against staleness from the rows beside it: `python experiments/delay/plot.py`."""

import json
import re
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
WAYS = {
    'as it is': r'delay\(steps=(\d+)\) \| mean\(\) \| sgd\(learning_rate=0.1\)',
    'step divided by the delay': r'delay\(steps=(\d+), damping=1.0\).*=0.1\)',
    'DC-ASGD, lambda 10': r'dc_asgd\(steps=(\d+), strength=10.0\).*=0.1\)',
    'DC-ASGD-a, lambda 2': r'dc_asgd\(steps=(\d+), strength=2.0, adaptive=True\).*=0.1\)',
}


def main() -> None:
    """One point for each run; those that diverged lie at the top."""
    rows = [json.loads(text) for text in (HERE / 'images' / 'rows.jsonl').read_text().splitlines()]
    found: dict[str, dict[int, list[float]]] = {way: defaultdict(list) for way in WAYS}
    for row in rows:
        update = row['update'].partition('  #')[0]
        loss = row['held_out'] if row['held_out'] is not None else np.nan
        for way, pattern in WAYS.items():
            if update == 'mean() | sgd(learning_rate=0.1)':
                found[way][0].append(loss)
            elif match := re.fullmatch(pattern, update):
                found[way][int(match[1])].append(loss)
    _, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for number, (way, losses) in enumerate(found.items()):
        x = np.array(sorted(losses)) + 0.15 * (number - 1.5)
        (drawn,) = axes.plot(x, [np.nanmean(losses[t]) for t in sorted(losses)], label=way)
        for at, t in zip(x, sorted(losses), strict=True):
            ended = np.array(losses[t])
            gone = np.isnan(ended)
            axes.plot(np.full((~gone).sum(), at), ended[~gone], 'o', color=drawn.get_color(), markersize=4)
            axes.plot(np.full(gone.sum(), at), np.full(gone.sum(), 0.9), 'x', color=drawn.get_color())
    axes.set(xlabel='delay, steps', ylabel='held-out loss (x: diverged)', xticks=[0, 4, 8])
    axes.legend()
    plt.savefig(HERE / 'staleness.png', dpi=120)


if __name__ == '__main__':
    main()
