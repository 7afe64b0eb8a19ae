"""How often a conditional part of a step sends: found from the program, checked against counting by hand."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType

from jaxdist import ledger

P = jax.P
W = 'workers'
MESH = AbstractMesh((4,), (W,), axis_types=(AxisType.Auto,))
BATCH = jax.ShapeDtypeStruct((4, 6), jnp.float32)
Code = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def meet(x: jax.Array) -> jax.Array:
    return lax.pcast(lax.psum(x, W), W, to='varying')


def stay(x: jax.Array) -> jax.Array:
    return x * 2


def spread(code: Code) -> Any:
    return jax.shard_map(code, mesh=MESH, in_specs=(P(), P(W)), out_specs=(P(), P(W)), axis_names={W})


def sharing(code: Code, state: Any, steps: int = 60, **options: Any) -> list[tuple[int, Fraction | None]]:
    """The share of each branch, in the order of the program."""
    found = ledger.frequencies(spread(code), state, BATCH, MESH.shape, steps, **options)
    return [(branch.index, share) for branch, share in found.items()]


def both(share: Fraction | None) -> list[tuple[int, Fraction | None]]:
    return [(0, None if share is None else 1 - share), (1, share)]


def every_fifth(count: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return count + 1, lax.cond((count + 1) % 5 == 0, meet, stay, x)


@pytest.mark.parametrize('steps, runs', [(60, 12), (7, 1), (4, 0)])
def test_a_counter(steps: int, runs: int) -> None:
    assert sharing(every_fifth, jnp.int32(0), steps) == both(Fraction(runs, steps))
    assert sharing(lambda s, x: jax.jit(every_fifth)(s, x), jnp.int32(0), steps) == both(Fraction(runs, steps))


def test_branches_have_the_names_of_the_trace() -> None:
    found = ledger.frequencies(spread(every_fifth), jnp.int32(0), BATCH, MESH.shape, 60)
    jaxpr = jax.make_jaxpr(spread(every_fifth))(jnp.int32(0), BATCH)
    [entry] = ledger.traced(jaxpr, MESH.shape)
    assert found[entry.branch[-1]] == Fraction(1, 5)


def test_the_counter_among_other_state() -> None:
    """Only what decides is run: the rest of the state has no values, and a conditional hands the counter through."""

    def code(state: Any, x: jax.Array) -> Any:
        met = lambda: (meet(x), state['count'] * 0, state['slow'] + 1)  # noqa: E731
        x, count, slow = lax.cond(state['count'] >= 2, met, lambda: (stay(x), state['count'] + 1, state['slow']))
        params = state['params'] + lax.pmean(jnp.sum(x), W)
        return {'count': count, 'slow': slow, 'params': params}, x

    state = {
        'count': jnp.int32(0),
        'slow': jax.ShapeDtypeStruct((), jnp.int32),
        'params': jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    assert sharing(code, state) == both(Fraction(1, 3))


def test_a_counter_that_only_moves_in_a_branch() -> None:
    """Every second step it grows, and at every third of those all meet."""

    def code(state: Any, x: jax.Array) -> Any:
        step, turns = state
        turns = lax.cond(step % 2 == 0, lambda: turns + 1, lambda: turns)
        go = (step % 2 == 0) & (turns % 3 == 0)
        return (step + 1, turns), lax.cond(go, meet, stay, x)

    assert sharing(code, (jnp.int32(0), jnp.int32(0))) == both(Fraction(1, 6))


def test_nested_conditionals() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        def outer(x: jax.Array) -> jax.Array:
            return lax.cond(count % 3 == 0, lambda y: lax.ppermute(y, W, [(0, 1)]), meet, x)

        return count + 1, lax.cond(count % 2 == 0, outer, stay, x)

    found = dict(sharing(code, jnp.int32(0))[:2]), dict(sharing(code, jnp.int32(0))[2:])
    counts = [(n % 2, n % 3) for n in range(60)]
    both_true, only_outer = (
        sum(c == (0, 0) for c in counts),
        sum(c[0] == 0 and c[1] != 0 for c in counts),
    )
    assert {0: Fraction(only_outer, 60), 1: Fraction(both_true, 60)} in found
    assert {0: Fraction(1, 2), 1: Fraction(1, 2)} in found


def test_a_switch() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        across = lambda y: lax.ppermute(y, W, [(0, 1)])  # noqa: E731
        return count + 1, lax.switch(jnp.minimum(count % 6, 2), [meet, stay, across], x)

    assert sharing(code, jnp.int32(0)) == [(0, Fraction(1, 6)), (1, Fraction(1, 6)), (2, Fraction(4, 6))]


@pytest.mark.parametrize('reverse', [False, True])
def test_in_a_scan_every_turn_is_a_chance(reverse: bool) -> None:
    """Turn i of step t is number 4 t + i, and something is added to it; of every five numbers two meet."""

    def code(count: jax.Array, x: jax.Array) -> Any:
        def turn(carry: Any, add: jax.Array) -> Any:
            n, x = carry
            return (n + 1, lax.cond((n + add) % 5 < 2, meet, stay, x)), n

        (count, x), _ = lax.scan(turn, (count, x), jnp.array([0, 2, 1, 1]), reverse=reverse)
        return count, x

    adds = [1, 1, 2, 0] if reverse else [0, 2, 1, 1]
    assert sharing(code, jnp.int32(0), steps=3) == both(Fraction(sum((n + adds[n % 4]) % 5 < 2 for n in range(12)), 12))
    assert sharing(code, jnp.int32(0), steps=50) == both(Fraction(2, 5))
    rows = ledger.traced_step(spread(code), jnp.int32(0), BATCH, MESH.shape, 50)
    assert [(r.count, r.frequency, r.bytes_per_step) for r in rows] == [(4, Fraction(2, 5), 4 * 36 * Fraction(2, 5))]


def test_a_scan_inside_a_conditional() -> None:
    """On every third step, two of the four turns meet."""

    def code(count: jax.Array, x: jax.Array) -> Any:
        turn = lambda x, i: (lax.cond(i % 2 == 0, meet, stay, x), None)  # noqa: E731
        return count + 1, lax.cond(count % 3 == 0, lambda x: lax.scan(turn, x, jnp.arange(4))[0], stay, x)

    (outer, inner) = sharing(code, jnp.int32(0))[:2], sharing(code, jnp.int32(0))[2:]
    assert [outer, inner] == [both(Fraction(1, 3)), [(0, Fraction(1, 6)), (1, Fraction(1, 6))]]


def test_a_loop_leads_to_the_predicate() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        rest = lax.while_loop(lambda n: n >= 4, lambda n: n - 4, count)
        return count + 1, lax.cond(rest == 1, meet, stay, x)

    assert sharing(code, jnp.int32(0)) == both(Fraction(1, 4))


def test_a_loop_that_also_holds_what_is_not_known_is_not_known() -> None:
    zero = lambda: lax.pcast(jnp.zeros(()), W, to='varying')  # noqa: E731

    def code(count: jax.Array, x: jax.Array) -> Any:
        two = lax.while_loop(lambda s: s[0] >= 4, lambda s: (s[0] - 4, zero()), (count, x[0, 0]))
        return count + 1, lax.cond(two[0] == 1, meet, stay, x)

    def handed_on(count: jax.Array, x: jax.Array) -> Any:
        after = lax.scan(lambda s, _: ((s[1], x[0, 0]), None), (zero(), zero()), None, length=2)[0]
        return count + 1, lax.cond(after[0] > count, meet, stay, x)

    assert sharing(code, jnp.int32(0)) == both(None)
    assert sharing(handed_on, jnp.int32(0)) == both(None)


def test_callbacks_are_not_called(capsys: pytest.CaptureFixture[str]) -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        jax.debug.print('count {}', count)
        return every_fifth(count, x)

    assert sharing(code, jnp.int32(0)) == both(Fraction(1, 5))
    jax.effects_barrier()
    assert capsys.readouterr().out == ''


def test_a_random_predicate_draws_from_the_state() -> None:
    def code(key: jax.Array, x: jax.Array) -> Any:
        key, now = jax.random.split(key)
        return key, lax.cond(jax.random.bernoulli(now, 0.3), meet, stay, x)

    key, runs = jax.random.key(7), 0
    for _ in range(40):
        key, now = jax.random.split(key)
        runs += int(jax.random.bernoulli(now, 0.3))
    assert 0 < runs < 40
    assert sharing(code, jax.random.key(7), steps=40) == both(Fraction(runs, 40))


def test_what_depends_on_data_or_on_the_worker_has_no_share() -> None:
    def by_batch(count: jax.Array, x: jax.Array) -> Any:
        return count + 1, lax.cond(lax.pmean(x[0, 0], W) > 0, meet, stay, x)

    def by_batch_of_yesterday(seen: jax.Array, x: jax.Array) -> Any:
        return lax.pmean(x[0, 0], W), lax.cond(seen > 0, meet, stay, x)

    def by_worker(count: jax.Array, x: jax.Array) -> Any:
        return count + 1, lax.cond(count % 2 == lax.axis_index(W) * 0, meet, stay, x)

    def by_batch_and_counter(count: jax.Array, x: jax.Array) -> Any:
        inner = lambda x: lax.cond(count % 2 == 0, meet, stay, x)  # noqa: E731
        return count + 1, lax.cond(lax.pmean(x[0, 0], W) > 0, inner, stay, x)

    assert sharing(by_batch_and_counter, jnp.int32(0)) == [*both(None), *both(None)]
    assert sharing(by_batch, jnp.int32(0)) == both(None)
    assert sharing(by_batch_of_yesterday, jnp.float32(0)) == both(None)
    assert sharing(by_worker, jnp.int32(0)) == both(None)


def test_state_that_differs_between_workers_has_no_share() -> None:
    def code(count: jax.Array, x: jax.Array) -> Any:
        return count + 1, lax.cond(count[0] % 2 == 0, meet, stay, x)

    step = jax.shard_map(code, mesh=MESH, in_specs=P(W), out_specs=P(W))
    found = ledger.frequencies(step, jnp.zeros(4, jnp.int32), BATCH, MESH.shape, 10)
    assert list(found.values()) == [None, None]

    def mine(count: jax.Array, x: jax.Array, own: jax.Array) -> Any:
        return count + 1, lax.cond((count + own[0]) % 2 == 0, meet, stay, x)

    cut = jax.shard_map(mine, mesh=MESH, in_specs=(P(), P(W), P(W)), out_specs=(P(), P(W)))
    found = ledger.frequencies(lambda s, x: cut(s, x, jnp.arange(4)), jnp.int32(0), BATCH, MESH.shape, 10)
    assert list(found.values()) == [None, None]


def test_first_values_from_a_function() -> None:
    """It starts at 3, so that steps 2, 7, ... meet; what else it makes is never made."""

    def code(state: Any, x: jax.Array) -> Any:
        count, big = state
        return (count + 1, big), every_fifth(count, x)[1]

    def initial() -> Any:
        huge = jnp.zeros((2**40,)) + jnp.arange(2.0**40)  # 4 TB: nobody could
        start = jax.shard_map(lambda: lax.psum(1, W) - 1, mesh=MESH, in_specs=(), out_specs=P())()
        return jnp.int32(start), huge

    state = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((2**40,), jnp.float32)
    assert sharing(code, state, steps=7, initial=initial) == both(Fraction(2, 7))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r'first value of state\[1\]: give a state with values'):
        sharing(
            lambda s, x: ((s[0], s[1] + 1), every_fifth(s[1], x)[1]), (jnp.ones(3), jax.ShapeDtypeStruct((), 'int32'))
        )
    with pytest.raises(ValueError, match='steps=0 must be 1 or more'):
        sharing(every_fifth, jnp.int32(0), steps=0)
    with pytest.raises(ValueError, match=r'the step turns state\[.count.\] from .*int32.* into .*float32'):
        sharing(lambda s, x: ({'count': s['count'] * 1.5}, x), {'count': jnp.int32(0)})
    with pytest.raises(ValueError, match=r'must return \(state, out\)'):
        sharing(lambda s, x: ((s, s), x), jnp.int32(0))
    with pytest.raises(ValueError, match=r'initial makes .* where the state is'):
        sharing(every_fifth, jax.ShapeDtypeStruct((), 'int32'), initial=lambda: (jnp.int32(0), 1))
