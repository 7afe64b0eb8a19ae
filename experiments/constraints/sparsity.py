"""Networks trained to be sparse against networks that are pruned, from the runs of configs/sparsity.py.

A constrained network is cut at the constraint's `small`; the unconstrained network of the same seed is then pruned by
magnitude to the same number of weights, and judged as it is, and after training again with what is left.
"""

import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from reading import HERE, Run, told, variants, write

from jaxdist import line
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.step import make_step
from jaxdist.training.train import Training, first_batch, prepare, shapes

SMALL = 0.01
AGAIN = 300
"""Steps of training after pruning."""


def trained(run: Run, training: Training) -> dict:
    """The parameters at the end of a run."""
    found = Checkpoints(run.folder / 'checkpoints').restore(training.program.state)
    assert found is not None
    return jax.device_get(training.params(found.state))


def kernels(params: dict) -> np.ndarray:
    """The sizes of all weights but the biases'."""
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
    return 100 * float(sum(sums['accuracy'] for sums, _ in each) / sum(count for _, count in each))


def trained_again(params: dict, keep: dict, training: Training) -> dict:
    """The parameters after more training in which what was pruned stays 0."""
    asked = training.experiment
    cut = lambda params: jax.tree.map(jnp.multiply, params, keep)  # noqa: E731
    program = make_step(
        lambda params, batch, key: training.model.loss(cut(params), batch, key),
        lambda key: params,
        line.build(asked.update),
        shapes(first_batch(training)),
        training.where,
    )
    state = program.init(jax.random.key(0))
    for step in range(AGAIN):
        batch = training.data.batch(asked.seed, asked.steps + step, asked.batch, training.where.count)
        state, _ = program.step(state, training.put(batch))
    return jax.device_get(cut(state.params))


def compared(run: Run, free: Run) -> dict[str, float]:
    """A constrained run, cut, against the unconstrained one of the same seed, pruned to as many weights."""
    training, plain = prepare(run.experiment), prepare(free.experiment)
    params, dense = trained(run, training), trained(free, plain)
    density = float((kernels(params) > SMALL).mean())
    pruned = mask(dense, float(np.quantile(kernels(dense), 1 - density)))
    cut = jax.tree.map(np.multiply, params, mask(params, SMALL))
    return {
        'density': density,
        'before': accuracy(params, training),
        'after': accuracy(cut, training),
        'dense': accuracy(dense, plain),
        'pruned': accuracy(jax.tree.map(np.multiply, dense, pruned), plain),
        'again': accuracy(trained_again(jax.tree.map(np.multiply, dense, pruned), pruned, plain), plain),
    }


def draw(numbers: dict[str, list[dict[str, float]]]) -> None:
    """Accuracy against density, a point for each run."""
    _, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    lines = {'after': 'trained under the constraint, cut', 'again': 'pruned, trained on', 'pruned': 'pruned'}
    for color, (key, label) in enumerate(lines.items()):
        runs = [run for own in numbers.values() for run in own]
        axes.plot([run['density'] for run in runs], [run[key] for run in runs], 'osD'[color], label=label)
    dense = float(np.mean([run['dense'] for own in numbers.values() for run in own]))
    axes.axhline(dense, color='black', linestyle=':', linewidth=1, label='all weights, no constraint')
    axes.set(xscale='log', xlabel='part of the weights that is left', ylabel='held-out accuracy, %')
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
        cells = [told(at('density')), told(at('before'), 2), told(at('after'), 2)]
        price = [run['after'] - run['dense'] for run in runs]
        ahead = [run['after'] - run['again'] for run in runs]
        cells += [told(price, 2, '+'), told(at('pruned'), 1), told(at('again'), 2), told(ahead, 2, '+')]
        rows.append([bound, *cells])
    header = ['bound', 'density', 'accuracy, %', 'cut', 'less no bound', 'no bound, pruned', 'and trained on',
              'cut, less that']  # fmt: skip
    write('sparsity', header, rows, numbers)
    draw(numbers)


if __name__ == '__main__':
    main()
