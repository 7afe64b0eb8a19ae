"""Draws held-out loss against staleness from `images/rows.jsonl`: `python experiments/delay/plot.py`."""

import json
import re
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from jaxdist.report.canvas import COLOURS, MARKERS

HERE = Path(__file__).parent
VARIANTS = {
    'uncorrected': r'delay\(steps=(\d+)\) \| mean\(\) \| sgd\(learning_rate=0.1\)',
    'step size divided by the delay': r'delay\(steps=(\d+), damping=1.0\).*=0.1\)',
    'DC-ASGD, lambda 10': r'dc_asgd\(steps=(\d+), strength=10.0\).*=0.1\)',
    'DC-ASGD-a, lambda 2': r'dc_asgd\(steps=(\d+), strength=2.0, adaptive=True\).*=0.1\)',
}


def main() -> None:
    """Draws one point per run; diverged runs are marked x at the top."""
    rows = [json.loads(text) for text in (HERE / 'images' / 'rows.jsonl').read_text().splitlines()]
    losses: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in VARIANTS}
    for row in rows:
        update = row['update'].partition('  #')[0]
        loss = row['held_out'] if row['held_out'] is not None else np.nan
        for name, pattern in VARIANTS.items():
            if update == 'mean() | sgd(learning_rate=0.1)':
                losses[name][0].append(loss)
            elif match := re.fullmatch(pattern, update):
                losses[name][int(match[1])].append(loss)
    _, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for number, (name, by_delay) in enumerate(losses.items()):
        x = np.array(sorted(by_delay)) + 0.15 * (number - 1.5)  # side by side, so that points do not overlap
        style = {'color': COLOURS[number], 'marker': MARKERS[number]}
        axes.plot(x, [np.nanmean(by_delay[t]) for t in sorted(by_delay)], color=COLOURS[number])
        axes.plot([], [], label=name, **style)
        for at, t in zip(x, sorted(by_delay), strict=True):
            values = np.array(by_delay[t])
            diverged = np.isnan(values)
            axes.plot(np.full((~diverged).sum(), at), values[~diverged], linestyle='none', markersize=5, **style)
            axes.plot(np.full(diverged.sum(), at), np.full(diverged.sum(), 0.9), 'x', color=COLOURS[number])
    axes.set(xlabel='delay (steps)', ylabel='held-out loss (x: diverged)', xticks=[0, 4, 8])
    axes.legend()
    plt.savefig(HERE / 'staleness.png', dpi=120)


if __name__ == '__main__':
    main()
