"""Frequencies of conditional collectives, computed from the program and checked against counting by hand."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from ledger_fixtures import BATCH, MESH, P, W, both, frequencies, local, sharded, synchronise

from jaxdist import ledger


def every_fifth(count: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return count + 1, lax.cond((count + 1) % 5 == 0, synchronise, local, x)


@pytest.mark.parametrize('steps, runs', [(60, 12), (7, 1), (4, 0)])
def test_a_counter(steps: int, runs: int) -> None:
    assert frequencies(every_fifth, jnp.int32(0), steps) == both(Fraction(runs, steps))
    assert frequencies(lambda s, x: jax.jit(every_fifth)(s, x), jnp.int32(0), steps) == both(Fraction(runs, steps))


def test_branches_have_the_names_of_the_trace() -> None:
    branches = ledger.frequencies(sharded(every_fifth), jnp.int32(0), BATCH, MESH.shape, 60)
    jaxpr = jax.make_jaxpr(sharded(every_fifth))(jnp.int32(0), BATCH)
    [collective] = ledger.traced(jaxpr, MESH.shape)
    assert branches[collective.branch[-1]] == Fraction(1, 5)


def test_the_counter_among_other_state() -> None:
    """Only the counter has a value, and it is an output of the conditional."""

    def code(state: Any, x: jax.Array) -> Any:
        first = lambda: (synchronise(x), state['count'] * 0, state['slow'] + 1)  # noqa: E731
        x, count, slow = lax.cond(state['count'] >= 2, first, lambda: (local(x), state['count'] + 1, state['slow']))
        params = state['params'] + lax.pmean(jnp.sum(x), W)
        return {'count': count, 'slow': slow, 'params': params}, x

    state = {
        'count': jnp.int32(0),
        'slow': jax.ShapeDtypeStruct((), jnp.int32),
        'params': jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    assert frequencies(code, state) == both(Fraction(1, 3))


def test_a_counter_that_a_branch_increments() -> None:
    """It grows on every second step, and workers synchronise on every third of those."""

    def code(state: Any, x: jax.Array) -> Any:
        step, turns = state
        turns = lax.cond(step % 2 == 0, lambda: turns + 1, lambda: turns)
        go = (step % 2 == 0) & (turns % 3 == 0)
        return (step + 1, turns), lax.cond(go, synchronise, local, x)

    assert frequencies(code, (jnp.int32(0), jnp.int32(0))) == both(Fraction(1, 6))


def test_nested_conditionals() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        def outer(x: jax.Array) -> jax.Array:
            return lax.cond(count % 3 == 0, lambda y: lax.ppermute(y, W, [(0, 1)]), synchronise, x)

        return count + 1, lax.cond(count % 2 == 0, outer, local, x)

    branches = frequencies(code, jnp.int32(0))
    conditionals = dict(branches[:2]), dict(branches[2:])
    counts = [(n % 2, n % 3) for n in range(60)]
    both_true, only_outer = (
        sum(c == (0, 0) for c in counts),
        sum(c[0] == 0 and c[1] != 0 for c in counts),
    )
    assert {0: Fraction(only_outer, 60), 1: Fraction(both_true, 60)} in conditionals
    assert {0: Fraction(1, 2), 1: Fraction(1, 2)} in conditionals


def test_a_switch() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        permute = lambda y: lax.ppermute(y, W, [(0, 1)])  # noqa: E731
        return count + 1, lax.switch(jnp.minimum(count % 6, 2), [synchronise, local, permute], x)

    assert frequencies(code, jnp.int32(0)) == [(0, Fraction(1, 6)), (1, Fraction(1, 6)), (2, Fraction(4, 6))]


@pytest.mark.parametrize('reverse', [False, True])
def test_in_a_scan_frequencies_are_shares_of_its_turns(reverse: bool) -> None:
    """Turn i of step t has the number 4 t + i plus a constant of the turn; at two of five numbers it synchronises."""

    def code(count: jax.Array, x: jax.Array) -> Any:
        def turn(carry: Any, add: jax.Array) -> Any:
            n, x = carry
            return (n + 1, lax.cond((n + add) % 5 < 2, synchronise, local, x)), n

        (count, x), _ = lax.scan(turn, (count, x), jnp.array([0, 2, 1, 1]), reverse=reverse)
        return count, x

    adds = [1, 1, 2, 0] if reverse else [0, 2, 1, 1]
    assert frequencies(code, jnp.int32(0), steps=3) == both(
        Fraction(sum((n + adds[n % 4]) % 5 < 2 for n in range(12)), 12)
    )
    assert frequencies(code, jnp.int32(0), steps=50) == both(Fraction(2, 5))
    rows = ledger.traced_step(sharded(code), jnp.int32(0), BATCH, MESH.shape, 50)
    assert [(r.count, r.frequency, r.bytes_per_step) for r in rows] == [(4, Fraction(2, 5), 4 * 36 * Fraction(2, 5))]


def test_a_scan_inside_a_conditional() -> None:
    """On every third step, two of the four turns synchronise."""

    def code(count: jax.Array, x: jax.Array) -> Any:
        turn = lambda x, i: (lax.cond(i % 2 == 0, synchronise, local, x), None)  # noqa: E731
        return count + 1, lax.cond(count % 3 == 0, lambda x: lax.scan(turn, x, jnp.arange(4))[0], local, x)

    branches = frequencies(code, jnp.int32(0))
    assert [branches[:2], branches[2:]] == [both(Fraction(1, 3)), [(0, Fraction(1, 6)), (1, Fraction(1, 6))]]


def test_a_predicate_from_a_loop() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        rest = lax.while_loop(lambda n: n >= 4, lambda n: n - 4, count)
        return count + 1, lax.cond(rest == 1, synchronise, local, x)

    assert frequencies(code, jnp.int32(0)) == both(Fraction(1, 4))


def test_a_predicate_from_a_loop_over_the_worker_index() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        start = lax.pcast(count % 3, W, to='varying')
        end = lax.while_loop(lambda n: n < 5, lambda n: n + 1 + 0 * lax.axis_index(W), start)
        return count + 1, lax.cond(end > 4, synchronise, local, x)

    assert frequencies(code, jnp.int32(0)) == both(None)


def test_a_conditional_in_a_while_loop() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        turn = lambda s: (s[0] + 1, lax.cond(s[0] % 2 == 0, synchronise, local, s[1]))  # noqa: E731
        return count + 1, lax.while_loop(lambda s: s[0] < 3, turn, (count % 3, x))[1]

    assert frequencies(code, jnp.int32(0)) == both(None)


def test_in_a_scan_and_beside_a_model_axis() -> None:
    """The conditional is in a `shard_map` over the model axis, in a scan: on every second step, one turn of three."""
    mesh = AbstractMesh((4, 2), (W, 'model'), axis_types=(AxisType.Auto,) * 2)

    def code(count: jax.Array, x: jax.Array) -> Any:
        on_shards = jax.shard_map(
            lambda go, x: lax.cond(go, synchronise, local, x),
            in_specs=(P(), P(None, 'model')),
            out_specs=P(None, 'model'),
            axis_names={'model'},
        )
        turn = lambda x, i: (on_shards((i == 1) & (count % 2 == 0), x), None)  # noqa: E731
        return count + 1, lax.scan(turn, x, jnp.arange(3))[0]

    step = jax.shard_map(code, mesh=mesh, in_specs=(P(), P(W)), out_specs=(P(), P(W)), axis_names={W})
    branches = ledger.frequencies(step, jnp.int32(0), BATCH, mesh.shape, 20)
    assert list(branches.values()) == [Fraction(5, 6), Fraction(1, 6)]


def test_a_predicate_from_a_loop_that_also_carries_data() -> None:
    """A `while` loop counts as one value: what it carries depends on all that goes in."""
    zero = lambda: lax.pcast(jnp.zeros(()), W, to='varying')  # noqa: E731

    def code(count: jax.Array, x: jax.Array) -> Any:
        two = lax.while_loop(lambda s: s[0] >= 4, lambda s: (s[0] - 4, zero()), (count, x[0, 0]))
        return count + 1, lax.cond(two[0] == 1, synchronise, local, x) + two[1]

    def through_a_scan(count: jax.Array, x: jax.Array) -> Any:
        after = lax.scan(lambda s, _: ((s[1], x[0, 0]), None), (zero(), zero()), None, length=2)[0]
        return count + 1, lax.cond(after[0] > count, synchronise, local, x)

    assert frequencies(code, jnp.int32(0)) == both(None)
    assert frequencies(through_a_scan, jnp.int32(0)) == both(None)


def test_callbacks_are_not_called(capsys: pytest.CaptureFixture[str]) -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        jax.debug.print('count {}', count)
        return every_fifth(count, x)

    assert frequencies(code, jnp.int32(0)) == both(Fraction(1, 5))
    jax.effects_barrier()
    assert capsys.readouterr().out == ''


def test_a_random_predicate_draws_from_the_state() -> None:
    def code(key: jax.Array, x: jax.Array) -> Any:
        key, now = jax.random.split(key)
        return key, lax.cond(jax.random.bernoulli(now, 0.3), synchronise, local, x)

    key, runs = jax.random.key(7), 0
    for _ in range(40):
        key, now = jax.random.split(key)
        runs += int(jax.random.bernoulli(now, 0.3))
    assert 0 < runs < 40
    assert frequencies(code, jax.random.key(7), steps=40) == both(Fraction(runs, 40))


def test_predicates_from_data_or_the_worker_index() -> None:
    def by_batch(count: jax.Array, x: jax.Array) -> Any:
        return count + 1, lax.cond(lax.pmean(x[0, 0], W) > 0, synchronise, local, x)

    def by_last_batch(seen: jax.Array, x: jax.Array) -> Any:
        return lax.pmean(x[0, 0], W), lax.cond(seen > 0, synchronise, local, x)

    def by_worker(count: jax.Array, x: jax.Array) -> Any:
        return count + 1, lax.cond(count % 2 == lax.axis_index(W) * 0, synchronise, local, x)

    def by_batch_and_counter(count: jax.Array, x: jax.Array) -> Any:
        inner = lambda x: lax.cond(count % 2 == 0, synchronise, local, x)  # noqa: E731
        return count + 1, lax.cond(lax.pmean(x[0, 0], W) > 0, inner, local, x)

    assert frequencies(by_batch_and_counter, jnp.int32(0)) == [*both(None), *both(None)]
    assert frequencies(by_batch, jnp.int32(0)) == both(None)
    assert frequencies(by_last_batch, jnp.float32(0)) == both(None)
    assert frequencies(by_worker, jnp.int32(0)) == both(None)


def test_predicates_from_per_worker_values() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        return count + 1, lax.cond(count[0] % 2 == 0, synchronise, local, x)

    step = jax.shard_map(code, mesh=MESH, in_specs=P(W), out_specs=P(W))
    branches = ledger.frequencies(step, jnp.zeros(4, jnp.int32), BATCH, MESH.shape, 10)
    assert list(branches.values()) == [None, None]

    def shifted(count: jax.Array, x: jax.Array, shift: jax.Array) -> Any:
        return count + 1, lax.cond((count + shift[0]) % 2 == 0, synchronise, local, x)

    step = jax.shard_map(shifted, mesh=MESH, in_specs=(P(), P(W), P(W)), out_specs=(P(), P(W)))
    branches = ledger.frequencies(lambda s, x: step(s, x, jnp.arange(4)), jnp.int32(0), BATCH, MESH.shape, 10)
    assert list(branches.values()) == [None, None]


def test_first_values_from_a_function() -> None:
    """The counter starts at 3: workers synchronise on steps 2, 7, ... The other leaf is never computed."""

    def code(state: Any, x: jax.Array) -> Any:
        count, big = state
        return (count + 1, big), every_fifth(count, x)[1]

    def initial() -> Any:
        huge = jnp.zeros((2**40,)) + jnp.arange(2.0**40)  # 4 TB
        start = jax.shard_map(lambda: lax.psum(1, W) - 1, mesh=MESH, in_specs=(), out_specs=P())()
        return jnp.int32(start), huge

    state = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((2**40,), jnp.float32)
    assert frequencies(code, state, steps=7, initial=initial) == both(Fraction(2, 7))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r'first value of state\[1\]: give a state with values'):
        frequencies(
            lambda s, x: ((s[0], s[1] + 1), every_fifth(s[1], x)[1]), (jnp.ones(3), jax.ShapeDtypeStruct((), 'int32'))
        )
    with pytest.raises(ValueError, match='steps=0 must be 1 or more'):
        frequencies(every_fifth, jnp.int32(0), steps=0)
    with pytest.raises(ValueError, match=r'the step turns state\[.count.\] from .*int32.* into .*float32'):
        frequencies(lambda s, x: ({'count': s['count'] * 1.5}, x), {'count': jnp.int32(0)})
    with pytest.raises(ValueError, match=r'must return \(state, out\)'):
        frequencies(lambda s, x: ((s, s), x), jnp.int32(0))
    with pytest.raises(ValueError, match=r'initial makes .* where the state is'):
        frequencies(every_fifth, jax.ShapeDtypeStruct((), 'int32'), initial=lambda: (jnp.int32(0), 1))
