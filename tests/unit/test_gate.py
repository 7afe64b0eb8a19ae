"""The guard chooses each number where it is computed: the same bits as a choice at the end, without copies."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_fixtures import batches, make_program, place, run, start

from jaxdist.core.gate import gate
from jaxdist.line import build
from jaxdist.training.step import make_step


@pytest.mark.parametrize('keep', [False, True])
def test_what_follows_a_choice_does_not_change_the_result(keep: bool) -> None:
    """Results used by others, twice returned, unchanged, of another dtype, and constant ones."""

    def code(x: jax.Array, y: jax.Array) -> Any:
        mean = 0.9 * x + y
        large = mean > 1  # stored as an integer: what follows it expects a bool
        return {
            'large': large,
            'both': large & (y > 2),
            'mean': mean,
            'again': mean,
            'root': jnp.sqrt(mean) + jnp.sum(mean),
            'same': y,
            'c': 2.0,
        }

    old = {'large': 3, 'both': True, 'mean': 5.0, 'again': 6.0, 'root': 7.0, 'same': 8.0, 'c': 9.0}
    old = {name: jnp.full(() if name == 'c' else (3,), value, type(value)) for name, value in old.items()}
    x, y = np.float32([0.1, 1, 2]), np.float32([0, 1, 3])

    @jax.jit
    def both(x: jax.Array, y: jax.Array, keep: jax.Array) -> Any:
        new, choose = gate(code, (x, y), old)
        return new, choose(dict.fromkeys(old, keep))

    new, chosen = both(x, y, jnp.bool(keep))
    plain = jax.jit(code)(x, y)
    jax.tree.map(np.testing.assert_array_equal, new, plain)
    jax.tree.map(np.testing.assert_array_equal, chosen, plain if keep else old)


def test_collectives_run_once() -> None:
    def code(x: jax.Array) -> Any:
        moment = 0.9 * x
        return moment, jax.lax.psum(moment, 'w')

    def chosen(x: jax.Array, keep: jax.Array) -> Any:
        return gate(code, (x,), (x, x))[1]((keep, keep))

    traced = jax.make_jaxpr(chosen, axis_env=[('w', 2)])(1.0, True)
    assert Counter(eqn.primitive.name.partition('_')[0] for eqn in traced.eqns)['psum'] == 1


@pytest.mark.parametrize('line', ['mean() | adamw(1e-3)', 'mean() | sgd(0.1, momentum=0.9)'])
def test_the_guard_copies_no_tensor(line: str) -> None:
    """Without the choice in place, XLA copies each moment at the head of the step."""

    def first(key: jax.Array) -> dict[str, jax.Array]:
        return {f'w{i}': jax.random.normal(key, (3, 40 + i)) for i in range(4)}

    def product(params: Any, batch: Any, key: jax.Array) -> Any:
        return {'loss': sum(((batch['x'] @ p) ** 2).sum() for p in params.values())}, jnp.float32(len(batch['x']))

    (batch,) = batches(1)
    copies = []
    for guard in (False, True):
        program = make_step(product, first, build(line), batch, place('mesh', 2), guard=guard)
        text = program.step.lower(program.state, batch).compile().as_text()
        copies.append(len(re.findall(r'= f32\[3,\d+\]\S* copy\(', text[text.index('ENTRY') :])))
    assert copies[1] <= copies[0]


@pytest.mark.parametrize('line', ['mean() | adamw(0.1)', 'mean() | clip_by_global_norm(1.0) | sgd(0.1)'])
@pytest.mark.parametrize('size', [3e18, 1e30])
def test_a_gradient_without_a_finite_norm_is_rejected(line: str, size: float) -> None:
    """Second moments and the norm to clip by would be infinite, though each entry of the gradient is finite."""
    program, (batch,) = make_program(line), batches(1)
    batch['y'] = np.full_like(batch['y'], size)
    state, _ = run(program, [batch])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.opt_state)))
    assert int(state.skipped) == (size > 1.8e19)
    if size > 1.8e19:
        jax.tree.map(np.testing.assert_array_equal, state.params, start(program).params)
