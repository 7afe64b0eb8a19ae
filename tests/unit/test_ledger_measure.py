"""A step is measured: what it sends, from the compiled program, how often, from the traced one, and what it holds."""

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
from jaxdist.ledger import Branch, Collective
from jaxdist.ledger.measure import match_branches

P = jax.P
W = 'workers'
BATCH = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def meet(x: jax.Array) -> jax.Array:
    return lax.pcast(lax.psum(x, W), W, to='varying')


def stay(x: jax.Array) -> jax.Array:
    return x * 2


def spread(code: Any, mesh: Mesh) -> Any:
    return jax.shard_map(code, mesh=mesh, in_specs=(P(), P(W)), out_specs=(P(), P(W)), axis_names={W})


def real_mesh(*sizes: int) -> Mesh:
    return Mesh(np.array(jax.devices())[: int(np.prod(sizes))].reshape(sizes), (W, 'model')[: len(sizes)])


def test_measure() -> None:
    """Two rhythms with the same bytes, and a metric that is always there."""
    mesh = real_mesh(4)

    def code(count: jax.Array, x: jax.Array) -> Any:
        x = lax.cond(count % 5 == 0, meet, stay, x)
        x = lax.cond(count % 2 == 0, stay, meet, x)
        return count + 1, x + lax.pmean(x[0, 0], W)

    found = ledger.measure(jax.jit(spread(code, mesh)), jnp.int32(0), BATCH, mesh, 20)
    each, metric = Fraction(36), Fraction(6)
    assert [(r.count, r.bytes_when_run, r.frequency) for r in found.rows] == [
        (1, metric, 1),
        (1, each, Fraction(1, 2)),
        (1, each, Fraction(1, 5)),
    ]
    assert found.sent(W) == metric + each / 2 + each / 5
    assert found.rows == tuple(ledger.traced_step(spread(code, mesh), jnp.int32(0), BATCH, mesh.shape, 20))
    assert (found.memory['state'], found.memory['batch']) == (4, 4 * 6 * 4)
    assert found.memory['temporaries'] >= 0
    with pytest.raises(ValueError, match=r"no axis 'worker'; its axes are \['workers'\]"):
        found.sent('worker')


def test_measure_beside_a_model_axis() -> None:
    """The compiler cuts the payload in two, and the branch is still known."""
    mesh = real_mesh(4, 2)

    def code(state: Any, x: jax.Array) -> Any:
        count, w = state
        go = lambda w: lax.pmean(lax.pcast(w, W, to='varying') * count, W)  # noqa: E731
        return (count + 1, lax.cond(count % 5 == 0, go, lambda w: w, w)), x

    cut = NamedSharding(mesh, P(None, 'model'))
    whole = NamedSharding(mesh, P())
    state = jnp.int32(0), jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=cut)
    step = jax.jit(spread(code, mesh), out_shardings=((whole, cut), None))
    found = ledger.measure(step, state, BATCH, mesh, 20, stored={'parameters': state[1]})
    expected = Fraction(6, 4) * 8 * 3 * 4  # half of w
    assert [(r.axes, r.bytes_when_run, r.frequency) for r in found.rows] == [((W,), expected, Fraction(1, 5))]
    assert found.memory['parameters'] == 8 * 3 * 4


def test_as_json_and_as_a_table() -> None:
    rows = (
        ledger.Row((W,), 'all_gather', 'uint8', 2, Fraction(4200), Fraction(1, 30), Fraction(140)),
        ledger.Row((W, 'model'), 'permute', 'float32', 1, Fraction(5, 2), None, None),
    )
    found = ledger.Ledger({W: 4, 'model': 2, 'stage': 1}, rows, {'batch': 9})
    assert json.loads(json.dumps(found.to_json())) == {
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
    head, *lines = found.table()
    assert lines == [
        ['workers', 'all_gather', 'uint8', '2', '4,200', '1/30', '140'],
        ['workers x model', 'permute', 'float32', '1', '2.5', 'depends on data', 'depends on data'],
    ]
    assert len(head) == len(lines[0])


def entry(cond: str, sent: int, index: int = 1) -> Collective:
    return Collective((W,), 'all_reduce', 'float32', Fraction(sent), branch=(Branch(cond, index),))


def test_branches_that_cannot_be_told_apart_have_no_share() -> None:
    shares = {Branch('a', 1): Fraction(1, 5), Branch('b', 1): Fraction(1, 7)}
    wanted = [entry('a', 10), entry('b', 20)]
    assert match_branches([entry('y', 20), entry('z', 5)], wanted, shares) == {
        Branch('y', 1): Fraction(1, 7),
        Branch('z', 1): Fraction(1, 5),  # the one that is left
    }
    assert match_branches([entry('y', 5), entry('z', 7)], wanted, shares) == {
        Branch('y', 1): None,
        Branch('z', 1): None,
    }


def test_which_of_two_like_branches_it_is_does_not_matter() -> None:
    shares = {Branch('a', 1): Fraction(1, 5), Branch('b', 1): Fraction(1, 7)}
    found = match_branches([entry('y', 5), entry('z', 5)], [entry('a', 10), entry('b', 10)], shares)
    assert sorted(share or 0 for share in found.values()) == [Fraction(1, 7), Fraction(1, 5)]


def test_the_two_sides_of_a_conditional_are_told_apart() -> None:
    shares = {Branch('a', 0): Fraction(4, 5), Branch('a', 1): Fraction(1, 5)}
    found = match_branches([entry('y', 10, 1), entry('y', 10, 0)], [entry('a', 10, 0), entry('a', 10, 1)], shares)
    assert found == {Branch('y', 1): Fraction(1, 5), Branch('y', 0): Fraction(4, 5)}


def test_held() -> None:
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
