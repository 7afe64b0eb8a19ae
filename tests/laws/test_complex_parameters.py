"""Complex parameters train as their real and imaginary parts do; what is defined for real numbers refuses them.

The gradient is the conjugate of JAX's, so that gradient descent descends.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tree_fixtures import (
    BATCH,
    CODECS,
    FEEDBACK,
    KEY,
    LINES,
    OUTER,
    QUICK,
    SGD,
    W,
    build_program,
    check_types,
    loss,
    text,
    trained,
)

from jaxdist import InputError, line
from jaxdist.constraints import LagrangianObjective, inequality
from jaxdist.core import workers
from jaxdist.core.gradient import gradients, pullback
from jaxdist.training.step import make_step, shared_params

SLOW = pytest.mark.slow


def complex_tree() -> Any:
    return {'c': jnp.array([0.5 - 1j, 2j], jnp.complex64), 'w': jnp.ones(3)}


def real_tree() -> Any:
    """The same with real and imaginary parts as parameters."""
    c = complex_tree()['c']
    return {'c': {'x': c.real, 'y': c.imag}, 'w': jnp.ones(3)}


def real_loss(params: Any, batch: Any, key: jax.Array) -> Any:
    return loss({'c': params['c']['x'] + 1j * params['c']['y'], 'w': params['w']}, batch, key)


SPLIT = {
    'choco': f'{SGD} | contrib.split_real_and_imaginary(choco(codec=int8(), gamma=0.5))',
    'dc_asgd': f'contrib.split_real_and_imaginary(dc_asgd(steps=1, strength=0.5, adaptive=True)) | mean() | {SGD}',
    'mean, int8': f'contrib.split_real_and_imaginary(mean({FEEDBACK})) | {SGD}',
    'parameter_server': f'contrib.split_real_and_imaginary({text("parameter_server")})',
    'parameter_server, int8': f'contrib.split_real_and_imaginary({text("parameter_server", FEEDBACK)})',
    **{
        name: OUTER.format(f'contrib.split_real_and_imaginary({name}(0.1))').format('')
        for name in ('fed_adagrad', 'fed_adam', 'fed_yogi')
    },
}
"""The lines for what is defined for real numbers."""


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[SLOW] * (name not in QUICK)) for name in sorted({*LINES, *SPLIT})]
)
def test_a_complex_parameter_trains_as_its_real_and_imaginary_parts(name: str) -> None:
    algorithm, _, codec = name.partition(', ')
    real_line = text(algorithm, FEEDBACK if codec else '')
    ours = trained(complex_tree, SPLIT.get(name, real_line))
    program = make_step(real_loss, lambda key: real_tree(), line.build(real_line), BATCH, workers.simulated(W))
    state = program.init(KEY)
    for _ in range(5):
        state, _ = program.step(state, BATCH)
    theirs = jax.device_get(shared_params(state, program.layout))
    np.testing.assert_allclose(ours['c'], theirs['c']['x'] + 1j * theirs['c']['y'], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(ours['w'], theirs['w'], rtol=2e-5, atol=2e-6)


def test_gradient_descent_of_a_complex_parameter_descends() -> None:
    """JAX's own gradient is the conjugate: along it the imaginary part moves away from the minimum."""
    target = (1 + 2j) * BATCH['x'].astype(np.float64).mean()
    expected = np.asarray(complex_tree()['c'], np.complex128)
    for _ in range(5):
        expected -= 0.3 * (expected - target)
    np.testing.assert_allclose(trained(complex_tree, text('mean'))['c'], expected, rtol=1e-5)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_gradients_and_pullbacks_of_complex_parameters(accumulate: int) -> None:
    params, x = complex_tree(), BATCH['x'].astype(np.float64)
    expected = np.asarray(params['c'])[:, None] - (1 + 2j) * x
    grads = jax.jit(gradients(loss, accumulate, None))(params, (), BATCH, KEY)[2]
    np.testing.assert_allclose(grads['c'], expected.mean(1), rtol=1e-5)

    def pulled(params: Any) -> Any:
        sums = lambda params, state, batch, key: (loss(params, batch, key)[0]['loss'], state)  # noqa: E731
        return pullback(sums, params, (), BATCH, KEY, accumulate)[2](jnp.float32(0.5))

    np.testing.assert_allclose(jax.jit(pulled)(params)['c'], 0.5 * expected.sum(1), rtol=1e-5)


def test_a_complex_parameter_under_a_constraint() -> None:
    """The point of the unit disc that is nearest to 3 + 4j is (3 + 4j) / 5."""

    def distance(params: Any, batch: Any, key: jax.Array) -> Any:
        return {'loss': batch['x'].size * jnp.abs(params - (3 + 4j)) ** 2}, jnp.float32(batch['x'].size)

    disc = inequality('disc', lambda z: jnp.abs(z) ** 2, bound=1.0)
    objective = LagrangianObjective((disc,), line.build('sgd(0.2)'))
    update, placement = line.build('mean() | sgd(0.05)'), workers.simulated(2)
    program = make_step(distance, lambda key: 1j, update, BATCH, placement, objective=objective)
    state = program.init(KEY)
    for _ in range(150):
        state, _ = program.step(state, BATCH)
    assert complex(state.params) == pytest.approx(0.6 + 0.8j, abs=1e-3)


@pytest.mark.parametrize('name', sorted({name.partition(',')[0] for name in SPLIT} - {'mean', 'choco'}))
def test_an_algorithm_of_real_numbers_names_the_complex_parameter_and_the_cure(name: str) -> None:
    problem = rf"^{name}: .* parameter 'c' is complex64; contrib.split_real_and_imaginary\({name}"
    with pytest.raises(InputError, match=problem):
        build_program(complex_tree, text(name))


@pytest.mark.parametrize('name', CODECS)
def test_a_codec_names_the_complex_parameter_and_the_cure(name: str) -> None:
    codec = "by_path(rules={'w': None}, rest=int8())" if name == 'by_path' else CODECS[name]
    tree = {'c': jnp.ones((8, 8), jnp.complex64), 'w': jnp.ones((8, 8))}
    cure = re.escape("Average it exactly, as by_path(rules={'c': None}, rest=...) does")
    with pytest.raises(
        InputError, match=f"'c' is complex64: a codec takes means of floating-point numbers only. {cure}"
    ):
        check_types(tree, f'mean(codec={codec})')
    check_types(tree, f"mean(codec=by_path(rules={{'c': None}}, rest={CODECS['int8']}), feedback=True)")
