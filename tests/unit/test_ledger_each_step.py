"""What is sent at each step, and what it depends on, of programs with conditionals and loops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.ledger._dependence import dependence
from jaxdist.ledger.each_step import each_step

MESH = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))


def mean(x: jax.Array) -> jax.Array:
    return jax.lax.pcast(jax.lax.pmean(x, 'workers'), 'workers', to='varying')


def test_a_collective_in_a_loop_runs_several_times_in_the_steps_of_its_branch() -> None:
    def code(count: Any, x: jax.Array) -> Any:
        loop = lambda x: jax.lax.fori_loop(0, 3, lambda i, x: mean(x), x)  # noqa: E731
        return count + 1, jax.lax.cond((count + 1) % 2 == 0, loop, lambda x: x, x)

    specs = jax.P(), jax.P('workers')
    step = jax.shard_map(code, mesh=MESH, in_specs=specs, out_specs=specs)
    [found] = each_step(step, np.int32(0), jax.ShapeDtypeStruct((8,), 'float32'), MESH.shape, steps=4)
    assert found.runs is not None
    assert found.runs.tolist() == [0, 3, 0, 3]


def needs(code: Any) -> list[list[str]]:
    program = jax.make_jaxpr(code, axis_env=[('w', 2)])(1.0, 2.0)
    return [sorted(labels) for labels in dependence(program, {0: 'state', 1: 'batch'}).values()]


def test_a_value_that_is_chosen_depends_on_what_it_is_chosen_by() -> None:
    def code(x: Any, y: Any) -> Any:
        return jax.lax.psum(jax.lax.cond(y > 0, lambda x: x + 1, lambda x: x, x), 'w')

    assert needs(code) == [['batch', 'state']]


def test_a_turn_of_a_loop_depends_on_the_turns_before() -> None:
    def code(x: Any, y: Any) -> Any:
        def turn(carry: Any, _: Any) -> Any:
            return (jax.lax.psum(carry[1], 'w'), y), ()

        return jax.lax.scan(turn, (x, jnp.asarray(x)), length=3)

    assert needs(code) == [['batch', 'state']]
