"""Measures a step of 8 to 2,048 simulated workers with codecs, against one with the exact mean.

    python experiments/speed/simulation.py

Every ratio is of times that are measured in turns within one run; so is the growth from 8 to 2,048 workers.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
from measure import in_turns, perceptron, runner

from jaxdist import line
from jaxdist.core import workers
from jaxdist.training.step import make_step

HERE = Path(__file__).parent
COUNTS = (8, 32, 128, 512, 1024, 2048)
EXACT = 'mean()'
UPDATES = (
    EXACT,
    'mean(codec=int8(), feedback=True)',
    "mean(codec=int8(rounding='stochastic'))",
    'mean(codec=sign(), feedback=True)',
    'mean(codec=top_k(k=41), feedback=True)',
    'mean(codec=power_sgd(rank=2), feedback=True)',
)


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    results = {str(count): steps(count) for count in COUNTS}
    for count, result in results.items():
        print(count)
        for text, row in result.items():
            print(f'    {text:<48}{row["ms"]:>9.2f} ms {row["ratio"]:>6.2f}')
    (HERE / 'simulation.json').write_text(json.dumps({'jax': jax.__version__, **results}, indent=2) + '\n')
    draw(results)


def steps(count: int) -> dict[str, Any]:
    """By update line, the median time of a step and of its ratio to one with the exact mean. One example per worker."""
    model, batch = perceptron((32,), examples=count)
    runners = {}
    for text in UPDATES:
        program = make_step(model.loss, model.init, line.build(f'{text} | sgd(0.1)'), batch, workers.simulated(count))
        runners[text] = runner(program.init(jax.random.key(0)), program.step, batch)
    times = {text: [clock for clock, _ in pairs] for text, pairs in in_turns(runners, rounds=11).items()}
    out = {}
    for text, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times[EXACT], strict=True))
        out[text] = {'ms': round(1000 * statistics.median(seconds), 3), 'ratio': round(ratio, 2)}
    return out


def draw(results: dict[str, Any]) -> None:
    """Milliseconds a step against the number of workers, both logarithmic; a line of slope one is linear in workers."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for text in UPDATES:
        axes.plot(COUNTS, [results[str(count)][text]['ms'] for count in COUNTS], marker='o', label=text)
    axes.set(xscale='log', yscale='log', xlabel='simulated workers', ylabel='milliseconds per step')
    axes.set_xticks(COUNTS, [f'{count:,}' for count in COUNTS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(HERE / 'simulation.png', dpi=150)


if __name__ == '__main__':
    main()
