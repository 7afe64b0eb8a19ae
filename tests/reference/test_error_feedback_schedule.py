"""Error feedback under a falling learning rate: a schedule before the mean is the authors' EF-signSGD, after it is not.

The residual of Karimireddy et al. 2019 (arXiv 1901.09847, algorithm 1) is in units of learning rate times gradient.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist import laws, line

N, BLOCK, WORKERS = 512, 512, 3
FALLING = 'piecewise_constant_schedule(1.0, {4: 0.1, 8: 0.1})'
RATES = [1.0] * 4 + [0.1] * 4 + [0.01] * 4
Compress = Callable[[np.ndarray], np.ndarray]


def scaled_sign(p: np.ndarray) -> np.ndarray:
    """The signs times the mean magnitude of the tensor, which is one block."""
    return np.abs(p).mean() * np.sign(p)


def top_ten(p: np.ndarray) -> np.ndarray:
    """The ten entries of largest magnitude; the others are 0."""
    return np.where(np.abs(p) >= np.sort(np.abs(p))[-10], p, 0.0)


CODECS: dict[str, Compress] = {f'sign(block={BLOCK})': scaled_sign, f'top_k(k=10, block={BLOCK})': top_ten}


def error_feedback(gradients: np.ndarray, start: np.ndarray, rates: list[float], compress: Compress) -> np.ndarray:
    """The authors' loop, with W workers whose compressed steps are averaged: [T, W, n] to parameters [n]."""
    x, e = start.copy(), np.zeros(gradients.shape[1:])
    for rate, g in zip(rates, gradients, strict=True):
        p = rate * g + e
        delta = np.array([compress(row) for row in p])
        x, e = x - delta.mean(0), p - delta
    return x


def mean(codec: str) -> str:
    """The call of the mean; in two phases it would compress a second time, which the authors do not."""
    return f"mean(codec={codec}, feedback=True, exchange='gather')"


def distance(text: str, rates: list[float], compress: Compress) -> float:
    """The largest distance between a line's last parameters and those of the authors' loop."""
    path = laws.Trial(line.build(text), WORKERS, shapes={'w': (N,)}, dtype=jnp.float32).path
    start, gradients = (tree['w'].astype(np.float64) for tree in (path.params, path.gradients))
    expected = error_feedback(gradients, start[0, 0], rates, compress)
    return float(np.abs(path.params['w'][-1, 0] - expected).max())


@pytest.mark.parametrize('codec', CODECS)
def test_a_falling_rate_belongs_before_the_mean(codec: str) -> None:
    assert distance(f'sgd({FALLING}) | {mean(codec)}', RATES, CODECS[codec]) < 2e-5
    assert distance(f'{mean(codec)} | sgd({FALLING})', RATES, CODECS[codec]) > 0.1


@pytest.mark.parametrize('codec', CODECS)
def test_a_constant_rate_may_stand_on_either_side(codec: str) -> None:
    for text in (f'sgd(0.5) | {mean(codec)}', f'{mean(codec)} | sgd(0.5)'):
        assert distance(text, [0.5] * len(RATES), CODECS[codec]) < 2e-5
