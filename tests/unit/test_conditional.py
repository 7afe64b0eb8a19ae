"""`when` runs a function once or never: in every kind of program, with collectives, and in place."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from step_fixtures import batches, place

from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import collectives, mesh
from jaxdist.core.conditional import when
from jaxdist.ledger import _hlo as hlo
from jaxdist.line import build
from jaxdist.training.step import make_step

W = collectives.AXIS
ROWS = np.float32([[0.1, 0.2], [1, -2], [3, 4], [5, 7]])  # of four workers
OUTER = 'outer=sgd(0.7, momentum=0.9, nesterov=True)'


def synchronise(go: jax.Array, x: jax.Array) -> Any:
    """The mean over workers, and a replicated count of how often it was taken; one value keeps its bits."""

    def code(before: dict[str, jax.Array]) -> dict[str, jax.Array]:
        mean = collectives.pmean(before['x'], W)
        return {'x': collectives.pvary(mean, W), 'count': before['count'] + 1, 'same': before['same']}

    return when(go, code, {'x': x, 'count': jnp.int32(5), 'same': x * 3})


def expected(go: bool) -> dict[str, np.ndarray]:
    means = np.repeat(ROWS.mean(0, keepdims=True), 4, 0)
    return {'x': means if go else ROWS, 'count': np.full(4, 6 if go else 5), 'same': ROWS * 3}


@pytest.mark.parametrize('go', [True, False])
def test_workers_of_a_mesh(go: bool) -> None:
    out = jax.P(W)
    code = lambda go, x: jax.tree.map(lambda y: jnp.atleast_2d(collectives.pvary(y, W)), synchronise(go, x))  # noqa: E731
    step = jax.shard_map(code, mesh=mesh.make({W: 4}), in_specs=(jax.P(), out), out_specs=out)
    result = jax.jit(step)(jnp.bool(go), ROWS)
    result['count'] = result['count'][:, 0]
    jax.tree.map(np.testing.assert_array_equal, result, expected(go))


@pytest.mark.parametrize('go', [True, False])
def test_simulated_workers(go: bool) -> None:
    step = jax.vmap(synchronise, in_axes=(None, 0), axis_name=W)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(step)(jnp.bool(go), ROWS), expected(go))
    # A condition that every worker shares stays one: the loop is not computed for all, with a choice at the end.
    traced = jax.make_jaxpr(step)(jnp.bool(go), ROWS)
    [loop] = [eqn for eqn in traced.eqns if eqn.primitive.name == 'while']
    assert [v.aval.shape for v in loop.params['cond_jaxpr'].jaxpr.outvars] == [()]
    assert not any(eqn.primitive.name == 'select_n' for eqn in loop.params['body_jaxpr'].jaxpr.eqns)


def test_a_condition_of_each_simulated_worker() -> None:
    step = jax.vmap(lambda go, x: when(go, lambda x: 2 * x, x))
    result = step(jnp.array([True, False, False, True]), ROWS)
    np.testing.assert_array_equal(result, ROWS * np.float32([[2], [1], [1], [2]]))


@pytest.mark.parametrize('go', [True, False])
def test_a_donated_buffer_is_changed_in_place(go: bool) -> None:
    code = lambda go, x, y: (when(go, lambda x: x + y, x), y)  # noqa: E731
    x, y = jnp.arange(1000.0), jnp.ones(1000)
    at = x.unsafe_buffer_pointer()
    out, _ = jax.jit(code, donate_argnums=1)(jnp.bool(go), x, y)
    assert x.is_deleted()
    assert out.unsafe_buffer_pointer() == at
    np.testing.assert_array_equal(out, np.arange(1000) + go)


def conditional(go: Any, code: Callable[[Any], Any], operand: Any) -> Any:
    """The same by `lax.cond`."""
    return lax.cond(go, code, lambda x: x, operand)


def first(key: jax.Array) -> dict[str, jax.Array]:
    return {f'w{i}': jax.random.normal(key, (3, 400 + i)) for i in range(2)}


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    return {'loss': sum(((batch['x'] @ p) ** 2).sum() for p in params.values())}, jnp.float32(len(batch['x']))


def local_step(line: str, where: str) -> tuple[int, int]:
    """Copies of tensors at a step between rounds, and bytes of temporary memory."""
    (batch,) = batches(1)
    program = make_step(loss, first, build(line), batch, place(where, 2), guard=False)
    compiled = program.step.lower(program.state, batch).compile()
    module = hlo.parse(compiled.as_text())
    entry = module.computations[module.entry].instructions.values()
    # Branch 0 of a conditional is the one without a round; a loop does not run its body then.
    idle = [op.called('branch_computations')[0] for op in entry if op.opcode == 'conditional']
    ops = [*entry, *(op for name in idle for op in module.computations[name].instructions.values())]
    copies = [op for op in ops if op.opcode == 'copy' and re.search(r'\[.*40\d\]', op.shape)]
    return len(copies), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize('where', ['mesh', 'simulated'])
@pytest.mark.parametrize(
    'line, saves_copies',
    [
        pytest.param(f'adamw(1e-3) | diloco(every=100, {OUTER})', False, id='diloco'),
        pytest.param(f'adamw(1e-3) | eager_diloco(every=100, {OUTER})', True, id='eager_diloco'),
    ],
)
def test_a_local_step_needs_less_than_with_a_conditional(
    line: str, saves_copies: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, memory = local_step(line, where)
    monkeypatch.setattr(periodic, 'when', conditional)
    copies_of_cond, memory_of_cond = local_step(line, where)
    assert copies < copies_of_cond if saves_copies else copies <= copies_of_cond
    assert memory < memory_of_cond
