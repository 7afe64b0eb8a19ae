"""Accumulation: the program has forward and backward once, for any number of parts, with the result of the whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxdist import build, make_step, simulated
from jaxdist.constraints import LagrangianObjective, inequality
from jaxdist.core.gradient import gradients, pullback


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    del key
    hidden = jnp.tanh(batch['x'] @ params['in'])
    return {'loss': jnp.sum((hidden @ params['out'] - batch['y']) ** 2)}, batch['x'].shape[0]


def init(key: jax.Array) -> Any:
    del key
    return {'in': jnp.full((3, 4), 0.1), 'out': jnp.full((4, 2), 0.2)}


BATCH = {'x': np.arange(48, dtype=np.float32).reshape(16, 3) / 48, 'y': np.ones((16, 2), np.float32)}


def products(program: Any) -> int:
    """The matrix products of a traced program, those in scans and calls too."""
    inner = sum(products(part) for eqn in program.eqns for part in core.jaxprs_in_params(eqn.params))
    return inner + sum(eqn.primitive.name == 'dot_general' for eqn in program.eqns)


def step_products(accumulate: int, **options: Any) -> int:
    """The matrix products of one worker's traced step."""
    program = make_step(loss, init, build('mean() | sgd(0.1)'), BATCH, simulated(2), accumulate=accumulate, **options)
    return products(jax.make_jaxpr(program.run)(program.state, BATCH).jaxpr)


@pytest.mark.parametrize('accumulate', [2, 8])
def test_a_step_has_forward_and_backward_once(accumulate: int) -> None:
    assert step_products(accumulate) == step_products(1)


def test_under_constraints_it_has_a_second_forward_and_no_more() -> None:
    """The weight of a constraint is known after its value: sums first, then the gradient, each of all parts."""
    small = inequality('small', lambda p, b: jnp.sum((b['x'] @ p['in']) ** 2, axis=1), over='mean', bound=0.1)
    counts = [step_products(n, objective=LagrangianObjective((small,))) for n in (2, 8)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize('accumulate', [2, 4])
def test_the_result_is_that_of_the_whole(accumulate: int) -> None:
    params, key = init(jax.random.key(0)), jax.random.key(0)
    whole, parts = (jax.jit(gradients(loss, n, None))(params, (), BATCH, key) for n in (1, accumulate))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, whole)
    fn = lambda p, state, b, key: (loss(p, b, key)[0], state)  # noqa: E731

    def pulled(n: int) -> Any:
        out, _, pull = pullback(fn, params, (), BATCH, key, n)
        return out, pull({'loss': jnp.float32(2.0)})

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.jit(lambda: pulled(accumulate))(), pulled(1)
    )
