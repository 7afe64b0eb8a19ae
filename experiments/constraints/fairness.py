"""What bounds on gaps between two groups cost, from the runs of configs/fairness.py."""

import re

import matplotlib.pyplot as plt
import numpy as np
from reading import HERE, Run, told, variants, write

GAPS = ('demographic_parity', 'equal_opportunity')


def bounds(run: Run) -> dict[str, float]:
    """By constraint, what the gap may be."""
    return {
        text.partition('(')[0]: float(re.findall(r'gap=([\d.]+)', text)[0]) for text in run.experiment.constraints.hold
    }


def measured(run: Run) -> dict[str, float]:
    """Held-out quality, and both gaps by hard decisions in training and held out."""
    last = run.last('judged')
    found = {'loss': last['held_out']['loss'], 'accuracy': 100 * last['held_out']['accuracy']}
    for where in ('training', 'held_out'):
        found |= {f'{name}, {where}': last['judged'][where][name] + bounds(run)[name] for name in GAPS}
    for name in GAPS:
        # Shown is that of the worse side, which by chance of a batch may be the idle one: not the mean, nor the last.
        found[f'multiplier of {name}'] = float(np.median(run.shown(name, 'multiplier')[-10:]))
    return found


def draw(every: list[tuple[str, list[dict[str, float]]]]) -> None:
    """Accuracy against either gap, held out; a point for each run."""
    _, both = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout='constrained')
    for axes, gap in zip(both, GAPS, strict=True):
        for label, runs in every:
            if label == 'no bound' or label.startswith(gap):
                xs = [run[f'{gap}, held_out'] for run in runs]
                axes.plot(xs, [run['accuracy'] for run in runs], 'o', label=label.removeprefix(gap).strip())
        for color, bound in zip(('C1', 'C2', 'C3'), (0.1, 0.05, 0.02), strict=True):
            axes.axvline(bound, color=color, linestyle=':', linewidth=1)
        axes.set(xlabel=f'{gap.replace("_", " ")}: held-out gap (dotted: bounds)', xlim=(0, None))
        axes.legend()
    both[0].set_ylabel('held-out accuracy, %')
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
        less = lambda key, runs=runs: [run[key] - none[key] for run, none in zip(runs, free, strict=True)]  # noqa: E731
        price = ['', ''] if runs is free else [told(less('accuracy'), 2, '+'), told(less('loss'), 4, '+')]
        gaps = [told(at(f'{name}, {where}')) for name in GAPS for where in ('training', 'held_out')]
        rows.append([label, told(at('accuracy'), 2), *price, *gaps])
    write(
        'fairness',
        ['bound', 'accuracy, %', 'less no bound', 'loss, less no bound', 'parity gap, training', 'held out',
         'opportunity gap, training', 'held out'],
        rows,
        dict(every),
    )  # fmt: skip
    draw(every)


if __name__ == '__main__':
    main()
