"""The convergence of a multiplier under each dual line, from the runs of configs/damping.py."""

import matplotlib.pyplot as plt
import numpy as np
from reading import HERE, Run, mean_text, variants, write

from jaxdist.report.canvas import COLOURS

NAME, NEAR, NOISE = 'squared_norm', 0.01, 1e-3
DRAWN = {
    'sgd(0.02)': 'plain ascent',
    'nupi(ki=0.02, kp=0.1)': 'nuPI, kp 0.1',
    'nupi(ki=0.02, kp=1.0)': 'nuPI, kp 1',
    'nupi(ki=0.02, kp=5.0)': 'nuPI, kp 5',
    'sgd(0.002, momentum=0.9)': 'momentum 0.9, equal rate',
    'scale_by_penalty() | sgd(1.0), penalty 0.1': 'method of multipliers, 0.1',
}


def label(run: Run) -> str:
    """The dual line, and the penalty if there is one."""
    settings = run.experiment.constraints
    return settings.dual + (f', penalty {settings.penalty}' if settings.penalty else '')


def measured(run: Run) -> dict[str, float | None]:
    """How the value oscillates after it has first reached its bound; the value is relative to a bound of 1."""
    values = np.array(run.metric(NAME, 'value'), float)
    after = values[np.argmax(values <= 0) :]
    signs = np.sign(after[np.abs(after) > NOISE])
    outside = np.flatnonzero(np.abs(values) > NEAR)
    return {
        'above': max(float(after.max()), 0.0),
        'below': max(float(-after.min()), 0.0),
        'crossings': 1 + int(np.sum(np.diff(signs) != 0)),
        'settled': int(outside[-1]) + 2 if outside[-1] + 1 < len(values) else None,
        'multiplier': run.metric(NAME, 'multiplier')[-1],
    }


def draw(every: list[list[Run]], limit: float) -> None:
    """Plots value and multiplier over steps for some dual lines; one curve for each seed."""
    drawn = {label(runs[0]): runs for runs in every}
    _, grid = plt.subplots(
        2, len(DRAWN), figsize=(2.7 * len(DRAWN), 5), sharex=True, sharey='row', layout='constrained'
    )
    for column, (line, title) in enumerate(DRAWN.items()):
        for axes, key, goal in ((grid[0, column], 'value', 0.0), (grid[1, column], 'multiplier', limit)):
            for run, color in zip(drawn[line], COLOURS, strict=False):
                values = run.metric(NAME, key)
                axes.plot(range(1, len(values) + 1), values, color=color, linewidth=1, alpha=0.8)
            axes.axhline(goal, color='black', linestyle=':', linewidth=1)
        grid[0, column].set_title(title, fontsize=10)
        grid[1, column].set(xlabel='step', xlim=(0, 300))
    grid[0, 0].set(ylabel='squared norm minus 1', ylim=(-1, 1.4))
    grid[1, 0].set(ylabel='multiplier (dotted: its limit)', ylim=(0, 0.25))
    plt.savefig(HERE / 'damping.png', dpi=120)


def main() -> None:
    """Writes damping.md, damping.json and damping.png."""
    every = [runs for runs in variants('damping') if 'set_to_zero' not in label(runs[0])]
    numbers = {label(runs[0]): [measured(run) for run in runs] for runs in every}
    rows = []
    for line, runs in numbers.items():
        at = {key: [run[key] for run in runs] for key in runs[0]}
        never = at['settled'].count(None)
        ends = f'{never} of {len(runs)} not within 600' if never else mean_text(at['settled'], 0)
        oscillation = [mean_text(at[key], digits) for key, digits in (('above', 3), ('below', 3), ('crossings', 1))]
        rows.append([f'`{line}`', *oscillation, ends, mean_text(at['multiplier'], 4)])
    header = ['dual line', 'farthest above', 'farthest below', 'crossings', 'within 1 % from step', 'last multiplier']
    write('damping', header, rows, numbers)
    draw(every, float(np.mean([run['multiplier'] for run in numbers['sgd(0.02)']])))


if __name__ == '__main__':
    main()
