"""The ledger reads a loop that runs its body once or never as a conditional: in traces, compiled programs and texts."""

import functools
import textwrap
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxdist import ledger
from jaxdist.core.conditional import when

P = jax.P
W = 'workers'
MESH = AbstractMesh((4,), (W,), axis_types=(AxisType.Auto,))
BATCH = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def synchronise(x: jax.Array) -> jax.Array:
    return lax.pcast(lax.psum(x, W), W, to='varying')


def local(x: jax.Array) -> jax.Array:
    return x * 2


def sharded(code: Callable[[Any, jax.Array], Any], mesh: Any = MESH) -> Any:
    return jax.shard_map(code, mesh=mesh, in_specs=(P(), P(W)), out_specs=(P(), P(W)), axis_names={W})


def frequencies(code: Callable[[Any, jax.Array], Any], state: Any, steps: int = 60) -> list[Any]:
    """The index and the frequency of each branch, in the order of the program."""
    branches = ledger.frequencies(sharded(code), state, BATCH, MESH.shape, steps)
    return [(branch.index, frequency) for branch, frequency in branches.items()]


def both(frequency: Fraction | None) -> list[Any]:
    """Of the two branches."""
    return [(0, None if frequency is None else 1 - frequency), (1, frequency)]


@pytest.mark.parametrize('steps, runs', [(60, 12), (7, 1), (4, 0)])
def test_a_counter_that_the_loop_changes(steps: int, runs: int) -> None:
    """Its body is branch 1, at the frequency of its condition: a counter that the loop itself changes."""

    def code(state: Any, x: jax.Array) -> Any:
        def turn(before: Any) -> Any:
            x, state = before
            return synchronise(x), {'since': jnp.int32(0), 'slow': state['slow'] + 1}

        state = {**state, 'since': state['since'] + 1}
        x, state = when(state['since'] >= 5, turn, (local(x), state))
        return state, x

    state = {'since': jnp.int32(0), 'slow': jax.ShapeDtypeStruct((), jnp.int32)}
    assert frequencies(code, state, steps) == both(Fraction(runs, steps))
    [row] = ledger.traced_step(sharded(code), state, BATCH, MESH.shape, steps)
    assert (row.count, row.bytes_when_run, row.frequency) == (1, Fraction(6, 4) * 24, Fraction(runs, steps))


def test_nested_loops() -> None:
    """In each other, in a conditional and in a scan; in a loop of several turns the frequency is not known."""

    def nested(count: jax.Array, x: jax.Array) -> Any:
        inner = lambda x: when(count % 3 == 0, synchronise, x)  # noqa: E731
        x = when(count % 2 == 0, inner, x)
        return count + 1, lax.cond(count % 4 == 0, lambda: when(count % 3 == 0, synchronise, x), lambda: x)

    def scanned(count: jax.Array, x: jax.Array) -> Any:
        turn = lambda x, i: (when((i + count) % 5 < 2, synchronise, x), None)  # noqa: E731
        return count + 5, lax.scan(turn, x, jnp.arange(5))[0]

    def looped(count: jax.Array, x: jax.Array) -> Any:
        turn = lambda s: (s[0] + 1, when(s[0] % 2 == 0, synchronise, s[1]))  # noqa: E731
        return count + 1, lax.while_loop(lambda s: s[0] < 3, turn, (count % 3, x))[1]

    def by_batch(count: jax.Array, x: jax.Array) -> Any:
        return count + 1, when(lax.pmean(x[0, 0], W) > 0, synchronise, x)

    half, fourth, sixth, twelfth = (Fraction(1, n) for n in (2, 4, 6, 12))
    shares = [share for _, share in frequencies(nested, jnp.int32(0))]
    assert sorted(shares) == sorted([half, half, half - sixth, sixth, 1 - fourth, fourth, fourth - twelfth, twelfth])
    assert frequencies(scanned, jnp.int32(0)) == both(Fraction(2, 5))
    assert frequencies(looped, jnp.int32(0)) == both(None)
    assert frequencies(by_batch, jnp.int32(0)) == both(None)


def test_measured_steps() -> None:
    """The same program with `when` and with `lax.cond`: the same rows, traced and compiled."""
    mesh = Mesh(np.array(jax.devices())[:4], (W,))

    def code(choose: Any, count: jax.Array, x: jax.Array) -> Any:
        x = choose(count % 5 == 0, synchronise, x)
        x = choose(count % 2 == 1, lambda x: synchronise(synchronise(x) * 2), x)
        return count + 1, x + lax.pmean(x[0, 0], W)

    rows = []
    for choose in (when, lambda go, f, x: lax.cond(go, f, lambda x: x, x)):
        step = sharded(functools.partial(code, choose), mesh)
        rows += [ledger.measure(jax.jit(step), jnp.int32(0), BATCH, mesh, 20).rows]
        rows += [tuple(ledger.traced_step(step, jnp.int32(0), BATCH, mesh.shape, 20))]
    expected = [(1, Fraction(6), 1), (2, Fraction(72), Fraction(1, 2)), (1, Fraction(36), Fraction(1, 5))]
    assert [(r.count, r.bytes_when_run, r.frequency) for r in rows[0]] == expected
    assert rows == [rows[0]] * 4


GO = 'ROOT %p = pred[] get-tuple-element(%s), index=0'
ONCE = f"""
    %body (s: (pred[], f32[80])) -> (pred[], f32[80]) {{
      %s = (pred[], f32[80]{{0}}) parameter(0)
      %no = pred[] constant(false)
      %again = pred[]{{:T(512)}} copy(%no)
      %y = f32[80]{{0}} get-tuple-element(%s), index=1
      %z = f32[80]{{0}} all-reduce(%y), channel_id=1, replica_groups={{{{0,1,2,3}}}}, to_apply=%add
      ROOT %t = (pred[], f32[80]{{0}}) tuple(%again, %z)
    }}

    %go (s: (pred[], f32[80])) -> pred[] {{
      %s = (pred[], f32[80]{{0}}) parameter(0)
      {GO}
    }}
"""
ENTRY = """
    ENTRY %main (x: f32[80], due: pred[]) -> (pred[], f32[80]) {
      %x = f32[80]{0} parameter(0)
      %due = pred[] parameter(1)
      %t = (pred[], f32[80]{0}) tuple(%due, %x)
      ROOT %w = (pred[], f32[80]{0}) while(%t), condition=%go, body=%body
    }
"""


@pytest.mark.parametrize(
    'loop, times, branch',
    [
        (ONCE, 1, (ledger.Branch('w', 1),)),
        (ONCE.replace('constant(false)', 'constant(true)'), None, ()),
        (ONCE.replace('constant(false)', 'get-tuple-element(%s), index=0'), None, ()),
        (ONCE.replace(GO, f'%p{GO[7:]}\n      ROOT %n = pred[] not(%p)'), None, ()),
    ],
)
def test_compiled_loops_as_text(loop: str, times: int | None, branch: Any) -> None:
    text = f'HloModule jit_f, num_partitions=4\n\n{textwrap.dedent(loop)}\n{textwrap.dedent(ENTRY)}'
    [collective] = ledger.compiled(text, MESH)
    assert (collective.sent, collective.times, collective.branch) == (480, times, branch)
