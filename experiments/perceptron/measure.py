"""The perceptron with parameter mixing (McDonald, Hall and Mann 2010, NAACL, Distributed Training Strategies for the
Structured Perceptron) on scikit-learn's digits, as a line of jaxdist.

    python experiments/perceptron/measure.py

Pixels are integers and W is a power of two, so for ten epochs float64 represents every weight exactly, and jaxdist must
equal a NumPy loop bit for bit.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist import line
from jaxdist.core import workers
from jaxdist.data.sampling import permutation
from jaxdist.report import interval
from jaxdist.report.canvas import COLOURS, MARKERS
from jaxdist.training.step import make_step

HERE = Path(__file__).parent
COUNTS, EPOCHS, SEEDS, CLASSES = (1, 2, 4, 8), 10, 20, 10
HELD_OUT = 357  # of 1797; the other 1440 are divided evenly, by 8 too
CHECKED = 3  # seeds that are also trained in NumPy, and until there are no mistakes
LONG, NEVER = 500, 10**6  # epochs


class Trained(NamedTuple):
    """A training run.

    Attributes:
        weights: the weights after each epoch [epochs, W, classes, features].
        mistakes: the mistakes in each epoch [epochs, W].
    """

    weights: np.ndarray
    mistakes: np.ndarray


def loss(params: Any, batch: Any, key: Any) -> Any:
    """The best wrong score minus the right one, or 0 if it is negative: its gradient is the perceptron's correction.

    A tie is a mistake.
    """
    scores = batch['x'] @ params.T
    is_label = jnp.arange(len(params)) == batch['y'][:, None]
    # `argmax` and not `max`, whose gradient is divided among tied classes.
    rival = jnp.where(is_label, -jnp.inf, scores).argmax(1)
    right, best = (jnp.take_along_axis(scores, c[:, None], 1)[:, 0] for c in (batch['y'], rival))
    wrong = best >= right
    return {'loss': jnp.where(wrong, best - right, 0).sum(), 'mistakes': wrong.sum().astype(scores.dtype)}, len(scores)


@functools.cache
def program(count: int, size: int, features: int, classes: int, epochs: int, every: int) -> Callable[..., Any]:
    """A jitted function from examples [size, W, ...] to `Trained`; each worker takes one example per step."""
    batch = {'x': jax.ShapeDtypeStruct((count, features), float), 'y': jax.ShapeDtypeStruct((count,), 'int32')}
    update = line.build(f'sgd(1.0) | average(every={every * size})')
    step = make_step(loss, lambda _: jnp.zeros((classes, features)), update, batch, workers.simulated(count))

    def epoch(state: Any, rows: Any) -> Any:
        state, metrics = lax.scan(step.run, state, rows)
        return state, Trained(state.params, metrics['mistakes'].sum(0))

    def run(rows: Any) -> Any:
        return lax.scan(lambda state, _: epoch(state, rows), step.init(jax.random.key(0)), length=epochs)[1]

    return jax.jit(run)


def trained(x: np.ndarray, y: np.ndarray, classes: int, epochs: int, every: int) -> Trained:
    """Trains with jaxdist on the shards `x` [W, N, features] and `y` [W, N], averaging every `every` epochs."""
    return Trained(*jax.device_get(program(*x.shape, classes, epochs, every)({'x': x.swapaxes(0, 1), 'y': y.T})))


def reference(x: np.ndarray, y: np.ndarray, classes: int, epochs: int, every: int) -> Trained:
    """The reference implementation of `trained`: a NumPy loop over workers and their examples."""
    w = np.zeros((len(x), classes, x.shape[2]))
    weights, mistakes = [], np.zeros((epochs, len(x)))
    for n in range(epochs):
        for i in range(len(x)):
            for features, label in zip(x[i], y[i], strict=True):
                scores = w[i] @ features
                right, scores[label] = scores[label], -np.inf
                rival = scores.argmax()
                if scores[rival] >= right:
                    w[i, label] += features
                    w[i, rival] -= features
                    mistakes[n, i] += 1
        if (n + 1) % every == 0:
            w[:] = w.sum(0) / len(w)
        weights.append(w.copy())
    return Trained(np.stack(weights), mistakes)


def check_exact(x: np.ndarray, y: np.ndarray, classes: int, epochs: int, every: int) -> None:
    """Asserts that jaxdist and the reference are equal bit for bit."""
    actual, expected = (train(x, y, classes, epochs, every) for train in (trained, reference))
    largest = np.abs(expected.weights).max() * max(np.abs(x).sum(-1).max(), len(x)) * len(x) ** epochs
    assert largest < 2**50, 'float64 may round these fractions: compare fewer epochs'
    assert np.array_equal(actual.weights, expected.weights), f'W={len(x)}, every={every}: the weights differ'
    assert np.array_equal(actual.mistakes, expected.mistakes), f'W={len(x)}, every={every}: the mistakes differ'


def margins(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The right class's score minus the best other: [..., examples] for weights [..., classes, features]."""
    scores = x @ w.swapaxes(-1, -2)
    is_label = np.arange(w.shape[-2]) == y[:, None]
    return scores[..., is_label] - np.where(is_label, -np.inf, scores).max(-1)


def accuracy(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The fraction of examples that are classified correctly; a tie is wrong."""
    return (margins(w, x, y) > 0).mean(-1)


def separator(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights of norm 1 that should separate all examples: a linear SVM with almost no slack."""
    from sklearn.svm import LinearSVC

    svm = LinearSVC(multi_class='crammer_singer', C=100, max_iter=10**6, tol=1e-6, fit_intercept=False, random_state=0)
    u = svm.fit(x / 16, y).coef_
    return u / np.linalg.norm(u)


def weighted_mistakes(run: Trained, u: np.ndarray, gamma: float, r2: float) -> float:
    """The sum of Theorem 3 for the whole run. Asserts its bound and, after each epoch, the two halves of its proof."""
    total, w = run.mistakes.mean(1).cumsum(), run.weights[:, 0]
    assert (np.tensordot(w, u, 2) >= gamma * total * (1 - 1e-9)).all(), 'the projection of w on u is too small'
    assert ((w**2).sum((1, 2)) <= r2 * total * (1 + 1e-9)).all(), 'the norm of w is too large'
    assert total[-1] <= r2 / gamma**2, 'there are more mistakes than the theorem allows'
    return float(total[-1])


def main() -> None:
    from sklearn.datasets import load_digits

    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_x64', True)
    began, images, order = time.monotonic(), load_digits(), permutation(1797, 0)
    x, y = images.data[order], images.target[order].astype(np.int32)
    test, (x, y) = (x[:HELD_OUT], y[:HELD_OUT]), (x[HELD_OUT:], y[HELD_OUT:])
    u = separator(x, y)
    gamma, r2 = float(margins(u, x, y).min()), float(2 * (x**2).sum(1).max())
    assert gamma > 0, 'the training examples were not separated'
    curves, theorem = {}, []
    for count, seed in itertools.product(COUNTS, range(SEEDS)):
        shards = tuple(a[permutation(len(y), seed, 1)].reshape(count, -1, *a.shape[1:]) for a in (x, y))
        mixed, local = (trained(*shards, CLASSES, EPOCHS, every) for every in (1, NEVER))
        weighted_mistakes(mixed, u, gamma, r2)
        variants = {'iterative mixing': mixed.weights[:, :1], 'mixing once': local.weights.mean(1, keepdims=True)}
        variants = variants | {'one shard alone': local.weights} if count > 1 else {'serial': mixed.weights}
        for name, w in variants.items():
            curves.setdefault(f'{name}, W={count}', []).append(accuracy(w, *test).mean(1))
        if seed < CHECKED:
            for every in (1, NEVER, EPOCHS):
                check_exact(*shards, CLASSES, EPOCHS, every)
            mixed, local = (trained(*shards, CLASSES, LONG, every) for every in (1, NEVER))
            assert not np.any([mixed.mistakes[-1], local.mistakes[-1]]), 'LONG is too short'
            row = {'workers': count, 'seed': seed, 'epochs with mistakes': int(mixed.mistakes.any(1).sum())}
            row |= {'weighted mistakes': weighted_mistakes(mixed, u, gamma, r2)}
            for name, w in ('iterative mixing', mixed.weights[-1, 0]), ('mixing once', local.weights[-1].mean(0)):
                row[f'training accuracy, {name}'] = float(accuracy(w, x, y))
            theorem.append(row)
            print(*(f'{name} {value:g}' for name, value in row.items()), sep='  ')
    held_out = {name: [interval(scores)[:2] for scores in np.transpose(runs)] for name, runs in curves.items()}
    pairs = [(name, 'serial, W=1') for name in list(curves)[1:]]
    pairs += [(f'iterative mixing, W={count}', f'mixing once, W={count}') for count in COUNTS[1:]]
    differences = {f'{a} less {b}': interval(np.subtract(curves[a], curves[b])[:, -1])[:2] for a, b in pairs}
    for name, points in (held_out | {name: [point] for name, point in differences.items()}).items():
        print(name, *(f'{100 * mean:.1f} ± {100 * half:.1f}' for mean, half in points[:: EPOCHS - 1]), sep=' | ')
    draw(held_out)
    result = {'jax': jax.__version__, 'training': len(y), 'held out': HELD_OUT, 'epochs': EPOCHS, 'seeds': SEEDS}
    result |= {'gamma': gamma, 'R squared': r2, 'bound': r2 / gamma**2, 'until no mistakes': theorem}
    result |= {
        'held-out accuracy by epoch (mean, half)': held_out,
        'paired differences after the last epoch': differences,
    }
    (HERE / 'results.json').write_text(json.dumps(result, indent=1) + '\n')
    print(f'gamma {gamma:.4f}, R squared {r2:g}, bound {r2 / gamma**2:.0f}; {time.monotonic() - began:.0f} s')


def draw(held_out: dict[str, list[tuple[float, float]]]) -> None:
    """Draws held-out accuracy by epoch, with one panel per number of workers, and the serial perceptron in each."""
    from matplotlib.figure import Figure

    panels = Figure(figsize=(10, 3.6), layout='constrained').subplots(1, len(COUNTS) - 1, sharey=True)
    for axes, count in zip(panels, COUNTS[1:], strict=True):
        shown = [(name, points) for name, points in held_out.items() if name.endswith((f'W={count}', 'W=1'))]
        for color, marker, (name, points) in zip(COLOURS, MARKERS, shown, strict=False):
            mean, half = 100 * np.transpose(points)
            epochs = range(1, len(mean) + 1)
            axes.plot(epochs, mean, label=name.split(',')[0], color=color, marker=marker, markersize=4)
            axes.fill_between(epochs, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        axes.set(title=f'{count} workers', xlabel='epoch')
    panels[0].set_ylabel('held-out accuracy, %')
    panels[0].legend(title='mean, 95 % interval', loc='lower right')
    panels[0].figure.savefig(HERE / 'accuracy.png', dpi=120)


if __name__ == '__main__':
    main()
