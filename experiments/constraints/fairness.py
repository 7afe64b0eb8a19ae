"""The cost of bounds on gaps between two groups, from the runs of configs/fairness.py."""

import re

import matplotlib.pyplot as plt
import numpy as np
from reading import HERE, Run, mean_text, variants, write

from jaxdist.report.canvas import COLOURS, MARKERS

GAPS = ('demographic_parity', 'equal_opportunity')


def bounds(run: Run) -> dict[str, float]:
    """The bound on each gap, by constraint."""
    return {
        text.partition('(')[0]: float(re.findall(r'gap=([\d.]+)', text)[0]) for text in run.experiment.constraints.hold
    }


def measured(run: Run) -> dict[str, float]:
    """Held-out quality, and both gaps by hard decisions in training and held out."""
    last = run.last('judged')
    values = {'loss': last['held_out']['loss'], 'accuracy': 100 * last['held_out']['accuracy']}
    for part in ('training', 'held_out'):
        values |= {f'{name}, {part}': last['judged'][part][name] + bounds(run)[name] for name in GAPS}
    for name in GAPS:
        # A record has the larger multiplier of the two sides of the gap; the median is robust to single batches.
        values[f'multiplier of {name}'] = float(np.median(run.metric(name, 'multiplier')[-10:]))
    return values


def draw(every: list[tuple[str, list[dict[str, float]]]]) -> None:
    """Plots held-out accuracy against each held-out gap; a point for each run."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout='constrained')
    for axes, gap in zip(panels, GAPS, strict=True):
        chosen = [(label, runs) for label, runs in every if label == 'no bound' or label.startswith(gap)]
        for color, marker, (label, runs) in zip(COLOURS, MARKERS, chosen, strict=False):
            xs = [run[f'{gap}, held_out'] for run in runs]
            text = label.removeprefix(gap).replace('<=', 'gap at most').strip()
            axes.plot(xs, [run['accuracy'] for run in runs], marker, color=color, label=text)
        for color, bound in zip(COLOURS[1:], (0.1, 0.05, 0.02), strict=False):
            axes.axvline(bound, color=color, linestyle=':', linewidth=1)
        axes.set(xlabel=f'{gap.replace("_", " ")}: held-out gap (dotted: bounds)', xlim=(0, None))
        axes.locator_params('x', nbins=5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False)
    panels[0].set_ylabel('held-out accuracy, %')
    plt.savefig(HERE / 'fairness.png', dpi=120)


def main() -> None:
    """Writes fairness.md, fairness.json and fairness.png."""
    every = []
    for runs in variants('fairness'):
        bound = {name: gap for name, gap in bounds(runs[0]).items() if gap < 1}
        label = next((f'{name} <= {gap:g}' for name, gap in bound.items()), 'no bound')
        every.append((label, [measured(run) for run in runs]))
    free, rows = every[0][1], []
    for label, runs in every:
        at = lambda key, runs=runs: [run[key] for run in runs]  # noqa: E731
        change = lambda key, runs=runs: [run[key] - none[key] for run, none in zip(runs, free, strict=True)]  # noqa: E731
        price = ['', ''] if runs is free else [mean_text(change('accuracy'), 2, '+'), mean_text(change('loss'), 4, '+')]
        gaps = [mean_text(at(f'{name}, {part}')) for name in GAPS for part in ('training', 'held_out')]
        rows.append([label, mean_text(at('accuracy'), 2), *price, *gaps])
    write(
        'fairness',
        ['bound', 'accuracy, %', 'minus no bound', 'loss minus no bound', 'parity gap, training', 'held out',
         'opportunity gap, training', 'held out'],
        rows,
        dict(every),
    )  # fmt: skip
    draw(every)


if __name__ == '__main__':
    main()
