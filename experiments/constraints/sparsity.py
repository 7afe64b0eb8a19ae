"""Sparsity by a constraint against magnitude pruning, from the runs of configs/sparsity.py.

A constrained network's weights below the constraint's `small` are set to 0. The unconstrained network of the same seed
is pruned by magnitude to the same number of weights, and evaluated before and after fine-tuning of the others.
"""

import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from reading import HERE, Run, mean_text, variants, write

from jaxdist import line
from jaxdist.report.canvas import COLOURS, MARKERS
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.step import make_step
from jaxdist.training.train import Training, first_batch, prepare, shapes

SMALL = 0.01
FINE_TUNING = 300
"""Steps of training after pruning."""


def trained(run: Run, training: Training) -> dict:
    """The parameters at the end of a run."""
    restored = Checkpoints(run.folder / 'checkpoints').restore(training.program.state)
    assert restored is not None
    return jax.device_get(training.params(restored.state))


def kernels(params: dict) -> np.ndarray:
    """The sizes of all weights except biases."""
    return np.concatenate([np.abs(layer['kernel']).reshape(-1) for layer in params.values()])


def mask(params: dict, least: float) -> dict:
    """1 for biases and for weights above `least` in size, else 0."""
    return {
        name: {'kernel': (np.abs(layer['kernel']) > least).astype(np.float32), 'bias': np.ones_like(layer['bias'])}
        for name, layer in params.items()
    }


def accuracy(params: dict, training: Training) -> float:
    """Held-out accuracy, %."""
    each = [jax.device_get(training.score(params, training.put(b))) for b in training.data.held_out(256)]
    return 100 * float(sum(sums['accuracy'] for sums, _, _ in each) / sum(count for _, count, _ in each))


def fine_tuned(params: dict, keep: dict, training: Training) -> dict:
    """The parameters after further training in which pruned weights stay 0."""
    experiment = training.experiment
    masked = lambda params: jax.tree.map(jnp.multiply, params, keep)  # noqa: E731
    program = make_step(
        lambda params, batch, key: training.model.loss(masked(params), batch, key),
        lambda key: params,
        line.build(experiment.update),
        shapes(first_batch(training)),
        training.workers,
    )
    state = program.init(jax.random.key(0))
    for step in range(FINE_TUNING):
        batch = training.data.batch(experiment.seed, experiment.steps + step, experiment.batch, training.workers.count)
        state, _ = program.step(state, training.put(batch))
    return jax.device_get(masked(state.params))


def compared(run: Run, free: Run) -> dict[str, float]:
    """A constrained run, thresholded, against the unconstrained one of the same seed, pruned to as many weights."""
    training, plain = prepare(run.experiment), prepare(free.experiment)
    params, dense = trained(run, training), trained(free, plain)
    density = float((kernels(params) > SMALL).mean())
    pruned = mask(dense, float(np.quantile(kernels(dense), 1 - density)))
    thresholded = jax.tree.map(np.multiply, params, mask(params, SMALL))
    return {
        'density': density,
        'before': accuracy(params, training),
        'after': accuracy(thresholded, training),
        'dense': accuracy(dense, plain),
        'pruned': accuracy(jax.tree.map(np.multiply, dense, pruned), plain),
        'again': accuracy(fine_tuned(jax.tree.map(np.multiply, dense, pruned), pruned, plain), plain),
    }


def draw(numbers: dict[str, list[dict[str, float]]]) -> None:
    """Plots accuracy against density; a point for each run."""
    _, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    lines = {'after': 'constrained, thresholded', 'again': 'pruned and fine-tuned', 'pruned': 'pruned'}
    for color, marker, (key, label) in zip(COLOURS, MARKERS, lines.items(), strict=False):
        every = [run for runs in numbers.values() for run in runs]
        axes.plot([run['density'] for run in every], [run[key] for run in every], marker, color=color, label=label)
    dense = float(np.mean([run['dense'] for runs in numbers.values() for run in runs]))
    axes.axhline(dense, color='black', linestyle=':', linewidth=1, label='all weights, no constraint')
    axes.set(xscale='log', xlabel='density (share of the weights that are left)', ylabel='held-out accuracy, %')
    axes.set_xticks([0.1, 0.2, 0.5], ['0.1', '0.2', '0.5'])
    axes.minorticks_off()
    axes.legend()
    plt.savefig(HERE / 'sparsity.png', dpi=120)


def main() -> None:
    """Writes sparsity.md, sparsity.json and sparsity.png."""
    free, *every = variants('sparsity')
    numbers = {
        re.findall(r'bound=([\d.]+)', runs[0].experiment.constraints.hold[0])[0]: [
            compared(run, none) for run, none in zip(runs, free, strict=True)
        ]
        for runs in every
    }
    rows = []
    for bound, runs in numbers.items():
        at = lambda key, runs=runs: [run[key] for run in runs]  # noqa: E731
        cells = [mean_text(at('density')), mean_text(at('before'), 2), mean_text(at('after'), 2)]
        price = [run['after'] - run['dense'] for run in runs]
        gain = [run['after'] - run['again'] for run in runs]
        cells += [mean_text(price, 2, '+'), mean_text(at('pruned'), 1), mean_text(at('again'), 2)]
        cells += [mean_text(gain, 2, '+')]
        rows.append([bound, *cells])
    header = ['bound', 'density', 'accuracy, %', 'thresholded', 'minus no bound', 'no bound, pruned',
              'and fine-tuned', 'thresholded minus fine-tuned']  # fmt: skip
    write('sparsity', header, rows, numbers)
    draw(numbers)


if __name__ == '__main__':
    main()
