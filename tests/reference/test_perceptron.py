"""The perceptron of experiments/perceptron (McDonald, Hall and Mann 2010) equals its NumPy reference bit for bit."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdist.training.user_code import load_script

SCRIPT = Path(__file__).parents[2] / 'experiments' / 'perceptron' / 'measure.py'
EPOCHS = 4


@pytest.mark.parametrize('every', [1, EPOCHS, 100])
def test_the_line_equals_the_reference(every: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 17, (4, 6, 5)).astype(float)  # 4 workers with 6 examples of 5 features
    y = rng.integers(0, 3, (4, 6)).astype(np.int32)
    with jax.enable_x64(True):
        load_script(SCRIPT).check_exact(x, y, classes=3, epochs=EPOCHS, every=every)


def test_a_tie_is_a_mistake_and_corrects_two_classes() -> None:
    loss = load_script(SCRIPT).loss
    batch = {'x': np.array([[3.0, 4.0]], np.float32), 'y': np.array([1])}
    gradient, sums = jax.grad(lambda w: (loss(w, batch, None)[0]['loss'], loss(w, batch, None)[0]), has_aux=True)(
        np.zeros((3, 2), np.float32)
    )
    assert sums == {'loss': 0, 'mistakes': 1}
    assert gradient.tolist() == [[3, 4], [-3, -4], [0, 0]]
