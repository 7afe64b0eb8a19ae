"""Loops that run their body once or never: the ledger reads them as conditionals, traced and compiled."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from ledger_fixtures import BATCH, GRID, GROUPS, MESH, W, both, frequencies, local, program, sharded, synchronise

from jaxdist import ledger
from jaxdist.core.conditional import when


@pytest.mark.parametrize('steps, runs', [(60, 12), (7, 1), (4, 0)])
def test_a_loop_that_runs_once_or_never_is_a_conditional(steps: int, runs: int) -> None:
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


def test_nested_loops_that_run_once_or_never() -> None:
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


GO = 'ROOT %p = pred[] get-tuple-element(%s), index=0'
ONCE = f"""
    %body (s: (pred[], f32[80])) -> (pred[], f32[80]) {{
      %s = (pred[], f32[80]{{0}}) parameter(0)
      %no = pred[] constant(false)
      %again = pred[]{{:T(512)}} copy(%no)
      %y = f32[80]{{0}} get-tuple-element(%s), index=1
      %z = f32[80]{{0}} all-reduce(%y), channel_id=1, {GROUPS}, to_apply=%add
      ROOT %t = (pred[], f32[80]{{0}}) tuple(%again, %z)
    }}

    %go (s: (pred[], f32[80])) -> pred[] {{
      %s = (pred[], f32[80]{{0}}) parameter(0)
      {GO}
    }}
"""
IF_DUE = """
    %due = pred[] parameter(1)
    %t = (pred[], f32[80]{0}) tuple(%due, %x)
    ROOT %w = (pred[], f32[80]{0}) while(%t), condition=%go, body=%body
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
def test_a_loop_that_runs_once_or_never_is_a_branch(loop: str, times: int | None, branch: Any) -> None:
    [collective] = ledger.compiled(program(IF_DUE, more=loop), GRID)
    assert (collective.sent, collective.times, collective.branch) == (480, times, branch)
