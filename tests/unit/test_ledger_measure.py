"""Measured steps: bytes sent from the compiled program, frequencies from the traced one, and bytes in memory."""

import functools
import json
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding

from jaxdist import ledger
from jaxdist.core.conditional import when
from jaxdist.ledger import Branch, Collective
from jaxdist.ledger.measure import match_branches

P = jax.P
W = 'workers'
BATCH = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def synchronise(x: jax.Array) -> jax.Array:
    return lax.pcast(lax.psum(x, W), W, to='varying')


def local(x: jax.Array) -> jax.Array:
    return x * 2


def sharded(code: Any, mesh: Mesh) -> Any:
    return jax.shard_map(code, mesh=mesh, in_specs=(P(), P(W)), out_specs=(P(), P(W)), axis_names={W})


def real_mesh(*sizes: int) -> Mesh:
    return Mesh(np.array(jax.devices())[: int(np.prod(sizes))].reshape(sizes), (W, 'model')[: len(sizes)])


def test_measure() -> None:
    """Two conditionals that send the same bytes at different periods, and a metric of every step."""
    mesh = real_mesh(4)

    def code(count: jax.Array, x: jax.Array) -> Any:
        x = lax.cond(count % 5 == 0, synchronise, local, x)
        x = lax.cond(count % 2 == 0, local, synchronise, x)
        return count + 1, x + lax.pmean(x[0, 0], W)

    measured = ledger.measure(jax.jit(sharded(code, mesh)), jnp.int32(0), BATCH, mesh, 20)
    each, metric = Fraction(36), Fraction(6)
    assert [(r.count, r.bytes_when_run, r.frequency) for r in measured.rows] == [
        (1, metric, 1),
        (1, each, Fraction(1, 2)),
        (1, each, Fraction(1, 5)),
    ]
    assert measured.sent(W) == metric + each / 2 + each / 5
    assert measured.rows == tuple(ledger.traced_step(sharded(code, mesh), jnp.int32(0), BATCH, mesh.shape, 20))
    assert (measured.memory['state'], measured.memory['batch']) == (4, 4 * 6 * 4)
    assert measured.memory['temporaries'] >= 0
    with pytest.raises(ValueError, match=r"no axis 'worker'; its axes are \['workers'\]"):
        measured.sent('worker')


def test_measure_loops_that_run_once_or_never() -> None:
    """The same program with `when` and with `lax.cond`: the same rows, traced and compiled."""
    mesh = real_mesh(4)

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


def test_measure_beside_a_model_axis() -> None:
    """The compiler shards the payload over the model axis, and the frequency is still known."""
    mesh = real_mesh(4, 2)

    def code(state: Any, x: jax.Array) -> Any:
        count, w = state
        go = lambda w: lax.pmean(lax.pcast(w, W, to='varying') * count, W)  # noqa: E731
        return (count + 1, lax.cond(count % 5 == 0, go, lambda w: w, w)), x

    over_model = NamedSharding(mesh, P(None, 'model'))
    replicated = NamedSharding(mesh, P())
    state = jnp.int32(0), jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=over_model)
    step = jax.jit(sharded(code, mesh), out_shardings=((replicated, over_model), None))
    measured = ledger.measure(step, state, BATCH, mesh, 20, stored={'parameters': state[1]})
    expected = Fraction(6, 4) * 8 * 3 * 4  # half of w
    assert [(r.axes, r.bytes_when_run, r.frequency) for r in measured.rows] == [((W,), expected, Fraction(1, 5))]
    assert measured.memory['parameters'] == 8 * 3 * 4


def test_json_and_table() -> None:
    rows = (
        ledger.Row((W,), 'all_gather', 'uint8', 2, Fraction(4200), Fraction(1, 30), Fraction(140)),
        ledger.Row((W, 'model'), 'permute', 'float32', 1, Fraction(5, 2), None, None),
    )
    measured = ledger.Ledger({W: 4, 'model': 2, 'stage': 1}, rows, {'batch': 9})
    assert json.loads(json.dumps(measured.to_json())) == {
        'mesh': {'workers': 4, 'model': 2, 'stage': 1},
        'sent_per_step': {'workers': None, 'model': None, 'stage': 0},
        'memory': {'batch': 9},
        'sent': [
            {'axes': ['workers'], 'kind': 'all_gather', 'dtype': 'uint8', 'count': 2}
            | {'bytes_when_run': 4200, 'frequency': 1 / 30, 'bytes_per_step': 140},
            {'axes': ['workers', 'model'], 'kind': 'permute', 'dtype': 'float32', 'count': 1}
            | {'bytes_when_run': 2.5, 'frequency': None, 'bytes_per_step': None},
        ],
    }
    head, *lines = measured.table()
    assert lines == [
        ['workers', 'all_gather', 'uint8', '2', '4,200', '1/30', '140'],
        ['workers x model', 'permute', 'float32', '1', '2.5', 'depends on data', 'depends on data'],
    ]
    assert len(head) == len(lines[0])


def conditional(cond: str, sent: int, index: int = 1) -> Collective:
    return Collective((W,), 'all_reduce', 'float32', Fraction(sent), branch=(Branch(cond, index),))


def matched_frequencies(compiled: list[int], traced: dict[int, Fraction], model: int) -> list[Fraction | None]:
    """Of conditionals that send these bytes in the compiled program; traced bytes -> frequency."""
    wanted = [conditional(str(sent), sent) for sent in traced]
    frequencies = {Branch(str(sent), 1): frequency for sent, frequency in traced.items()}
    new = [conditional(f'conditional.{i}', sent) for i, sent in enumerate(compiled)]
    matched = match_branches(new, wanted, frequencies, {W: 4, 'model': model})
    return [matched[collective.branch[-1]] for collective in new]


def test_branches_are_matched_by_the_bytes_of_their_shards() -> None:
    """An array is sent whole or in shards, so a branch sends between a shard and the whole of the traced bytes."""
    a, b, c = Fraction(1, 5), Fraction(1, 7), Fraction(1, 9)
    assert matched_frequencies([11, 7], {20: a, 12: b}, 2) == [a, b]  # 7 is less than half of 20
    assert matched_frequencies([10, 5], {10: a, 20: b}, 2) == [b, a]  # the same bytes as another branch in the trace
    assert matched_frequencies([40, 10, 20], {20: a, 40: b, 80: c}, 2) == [c, a, b]
    assert matched_frequencies([11, 9], {20: a, 12: b}, 4) == [None, None]  # either may be either
    assert matched_frequencies([11, 7], {20: a, 12: b}, 1) == [None, None]  # no axis to shard over
    assert sorted(f or 0 for f in matched_frequencies([10, 10], {12: a, 20: b}, 2)) == [b, a]
    assert matched_frequencies([10, 10, 8], {10: a, 30: b, 8: c}, 2) == [None] * 3  # two for the place of one


def test_measure_two_periods_beside_a_model_axis() -> None:
    """The compiler changes the bytes of both conditionals; only one matching agrees with a shard of each."""
    mesh = real_mesh(4, 2)

    def code(state: Any, x: jax.Array) -> Any:
        count, v, w = state
        go = lambda w: lax.pmean(lax.pcast(w, W, to='varying') * count, W)  # noqa: E731
        v = lax.cond(count % 2 == 0, go, lambda v: v, v)
        return (count + 1, v, lax.cond(count % 5 == 0, go, lambda w: w, w)), x

    over_model, replicated = NamedSharding(mesh, P(None, 'model')), NamedSharding(mesh, P())
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=over_model)  # noqa: E731
    step = jax.jit(sharded(code, mesh), out_shardings=((replicated, over_model, over_model), None))
    measured = ledger.measure(step, (jnp.int32(0), shape(20, 6), shape(8, 6)), BATCH, mesh, 20)
    assert [(r.bytes_when_run, r.frequency) for r in measured.rows] == [
        (Fraction(6, 4) * 20 * 3 * 4, Fraction(1, 2)),
        (Fraction(6, 4) * 8 * 3 * 4, Fraction(1, 5)),
    ]


def test_branches_that_cannot_be_matched_have_no_frequency() -> None:
    frequencies = {Branch('a', 1): Fraction(1, 5), Branch('b', 1): Fraction(1, 7)}
    wanted = [conditional('a', 10), conditional('b', 20)]
    assert match_branches([conditional('y', 20), conditional('z', 5)], wanted, frequencies, {W: 4}) == {
        Branch('y', 1): Fraction(1, 7),
        Branch('z', 1): Fraction(1, 5),  # the only one left
    }
    assert match_branches([conditional('y', 5), conditional('z', 7)], wanted, frequencies, {W: 4}) == {
        Branch('y', 1): None,
        Branch('z', 1): None,
    }


def test_branches_that_send_the_same_bytes_are_interchangeable() -> None:
    frequencies = {Branch('a', 1): Fraction(1, 5), Branch('b', 1): Fraction(1, 7)}
    matched = match_branches(
        [conditional('y', 5), conditional('z', 5)], [conditional('a', 10), conditional('b', 10)], frequencies, {W: 4}
    )
    assert sorted(frequency or 0 for frequency in matched.values()) == [Fraction(1, 7), Fraction(1, 5)]


def test_the_branches_of_one_conditional_are_matched_by_index() -> None:
    frequencies = {Branch('a', 0): Fraction(4, 5), Branch('a', 1): Fraction(1, 5)}
    matched = match_branches(
        [conditional('y', 10, 1), conditional('y', 10, 0)],
        [conditional('a', 10, 0), conditional('a', 10, 1)],
        frequencies,
        {W: 4},
    )
    assert matched == {Branch('y', 1): Fraction(1, 5), Branch('y', 0): Fraction(4, 5)}


def test_memory_bytes() -> None:
    mesh = real_mesh(4, 2)
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))  # noqa: E731
    x = jnp.zeros((8, 6))
    assert (
        ledger.memory_bytes({'a': place(x, W, 'model'), 'b': place(x, None, 'model'), 'c': place(x)}) == 24 + 96 + 192
    )
    assert ledger.memory_bytes([np.zeros(3, np.int8), jax.random.key(0), 1.0, None]) == 3 + 8 + 4
    assert ledger.memory_bytes(place(jax.random.split(jax.random.key(0), 8), W)) == 16
    one, another = (jax.device_put(jnp.zeros(n), jax.devices()[i]) for i, n in enumerate((5, 7)))
    assert ledger.memory_bytes([one, another]) == 28
    assert ledger.memory_bytes([one, another, place(x)]) == 28 + 192
    assert ledger.memory_bytes(jnp.zeros(3, 'int4')) == 3
    assert ledger.memory_bytes({}) == 0
