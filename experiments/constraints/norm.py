"""Bounded norms against weight decay, from the runs of configs/norm.py."""

import re

import matplotlib.pyplot as plt
import numpy as np
from reading import HERE, Run, mean_text, variants, write

from jaxdist.report.canvas import COLOURS, MARKERS


def family(run: Run) -> tuple[str, str]:
    """The kind of bound, and its strength."""
    hold, decay = run.experiment.constraints.hold, re.findall(r'decayed_weights\(([\d.]+)\)', run.experiment.update)
    if decay:
        return 'weight decay', decay[0]
    total, *each = (float(re.findall(r'squared_norm\((\d+)', text)[0]) for text in hold)
    return (
        ('bound on each tensor', f'{each[0]:g}')
        if each
        else ('bound on all', f'{total:g}')
        if total < 1000
        else ('none', '')
    )


def measured(run: Run) -> dict[str, float]:
    """Held-out quality, training loss, the norm of all parameters, and the last multiplier."""
    last, trained = run.last('held_out'), run.last('constraints')
    bound = float(re.findall(r'squared_norm\((\d+)', run.experiment.constraints.hold[0])[0])
    name = 'squared_norm' if 'squared_norm' in trained['constraints'] else 'all'
    return {
        'loss': last['held_out']['loss'],
        'accuracy': 100 * last['held_out']['accuracy'],
        'training loss': last['judged']['loss'],
        'norm': last['judged']['training']['all'] + bound,
        'violation': last['judged']['violation'],
        'multiplier': float(np.mean(run.metric(name, 'multiplier')[-5:])),
    }


def difference(runs: list[dict[str, float]], others: list[dict[str, float]]) -> str:
    """The difference of held-out losses, paired by seed."""
    return mean_text([run['loss'] - other['loss'] for run, other in zip(runs, others, strict=True)], 4, '+')


def main() -> None:
    """Writes norm.md, norm.json and norm.png."""
    every = [(*family(runs[0]), [measured(run) for run in runs]) for runs in variants('norm')]
    free, rows = every[0][2], []
    _, axes = plt.subplots(figsize=(7, 4.2), layout='constrained')
    for number, kind in enumerate(dict.fromkeys(kind for kind, _, _ in every)):
        members = [runs for other, _, runs in every if other == kind]
        for runs in members:
            at = [[run[key] for run in runs] for key in ('norm', 'loss')]
            style = {'color': COLOURS[number], 'marker': MARKERS[number], 'markersize': 5, 'linestyle': 'none'}
            axes.plot(*at, label=kind if runs is members[0] else None, **style)
        means = [[np.mean([run[key] for run in runs]) for runs in members] for key in ('norm', 'loss')]
        axes.plot(*means, color=COLOURS[number])
    axes.set(xscale='log', xlabel='squared norm of all parameters', ylabel='held-out loss')
    axes.set_xticks([20, 40, 80, 130], ['20', '40', '80', '130'], minor=False)
    axes.minorticks_off()
    axes.legend()
    plt.savefig(HERE / 'norm.png', dpi=120)
    decays = [runs for kind, _, runs in every if kind == 'weight decay']
    for index, (kind, strength, runs) in enumerate(every):
        of = {key: [run[key] for run in runs] for key in runs[0]}
        bounded = kind.startswith('bound')
        cells = [mean_text(of['norm'], 1), mean_text(of['loss'], 4), '' if runs is free else difference(runs, free)]
        cells += [difference(runs, decays[(index - 1) % 3]) if bounded else '', mean_text(of['accuracy'], 2)]
        cells += [mean_text(of['training loss'], 4), mean_text(of['multiplier'], 4) if bounded else '']
        rows.append([f'{kind} {strength}'.strip(), *cells])
    header = [
        '',
        'squared norm',
        'held-out loss',
        'minus none',
        'minus decay',
        'accuracy, %',
        'training loss',
        'multiplier',
    ]
    write('norm', header, rows, {f'{kind} {strength}'.strip(): runs for kind, strength, runs in every})


if __name__ == '__main__':
    main()
