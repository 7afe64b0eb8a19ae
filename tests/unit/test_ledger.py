"""The ledger's bytes: the traced program, the compiled one and the formula on paper say the same."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding

from jaxdist import ledger

P = jax.P
W = 'workers'
ROWS = 24  # float32 rows of 10 on each device: 960 bytes
SIZE = ROWS * 10


def mesh_of(*sizes: int, order: list[int] | None = None) -> Mesh:
    devices = np.array(jax.devices())[order or slice(None)]
    return Mesh(devices[: int(np.prod(sizes))].reshape(sizes), (W, 'model')[: len(sizes)])


def spread(code: Callable[..., Any], mesh: Mesh, out: Any = P(W), **options: Any) -> Any:
    return jax.shard_map(code, mesh=mesh, in_specs=P(W), out_specs=out, axis_names={W}, **options)


def payload(mesh: Mesh, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((mesh.shape[W] * ROWS, 10), dtype)


def both(code: Any, mesh: Mesh, *args: Any) -> tuple[ledger.Totals, ledger.Totals]:
    """What the traced and what the compiled program sends over the workers."""
    traced = ledger.traced(code, mesh.shape, *args)
    program = jax.jit(code).lower(*args).compile()
    whole = ledger.totals(traced), ledger.totals(ledger.compiled(program, mesh))
    return tuple({key: total for key, total in part.items() if W in key[0]} for part in whole)  # type: ignore[return-value]


def vary(x: jax.Array) -> jax.Array:
    return lax.pcast(x, W, to='varying')


def ring(n: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % n) for i in range(n)]


def one_way(n: int) -> list[tuple[int, int]]:
    """All but the last send, and the first also to itself, which is no sending."""
    return [(0, 0), *((i, i + 1) for i in range(1, n - 1))]


# name -> (code, its results' spec, numbers sent by each device of n, with S numbers put in)
CODES: dict[str, tuple[Callable[[jax.Array, int], jax.Array], Any, Callable[[int, int], Fraction]]] = {
    'psum': (lambda x, n: lax.psum(x, W), P(), lambda n, s: Fraction(2 * (n - 1) * s, n)),
    'pmean': (lambda x, n: lax.pmean(x, W), P(), lambda n, s: Fraction(2 * (n - 1) * s, n)),
    'pmax': (lambda x, n: lax.pmax(x, W), P(), lambda n, s: Fraction(2 * (n - 1) * s, n)),
    'all_gather': (lambda x, n: lax.all_gather(x, W), P(W), lambda n, s: Fraction((n - 1) * s)),
    'gather_invarying': (
        lambda x, n: lax.all_gather(x, W, to='invarying'),
        P(),
        lambda n, s: Fraction((n - 1) * s),
    ),
    'all_to_all': (
        lambda x, n: lax.all_to_all(x, W, 0, 0, tiled=True),
        P(W),
        lambda n, s: Fraction((n - 1) * s, n),
    ),
    'ring': (lambda x, n: lax.ppermute(x, W, ring(n)), P(W), lambda n, s: Fraction(s)),
    'one_way': (lambda x, n: lax.ppermute(x, W, one_way(n)), P(W), lambda n, s: Fraction((n - 2) * s, n)),
    'axis_index': (lambda x, n: x + lax.axis_index(W).astype(x.dtype), P(W), lambda n, s: Fraction(0)),
}


@pytest.mark.parametrize('sizes', [(8,), (3,), (4, 2), (1,)])
@pytest.mark.parametrize('name', CODES)
def test_one_collective(name: str, sizes: tuple[int, ...]) -> None:
    mesh = mesh_of(*sizes)
    code, out, formula = CODES[name]
    n = sizes[0]
    numbers = formula(n, SIZE) if n > 1 else Fraction(0)
    expected = {((W,), 'float32', False): 4 * numbers} if numbers else {}
    assert both(spread(lambda x: code(x, n), mesh, out), mesh, payload(mesh)) == (expected, expected)


@pytest.mark.parametrize('dtype', ['float32', 'int8', 'uint8'])
@pytest.mark.parametrize('name', ['psum', 'all_gather', 'all_to_all', 'ring'])
def test_dtypes(name: str, dtype: str) -> None:
    mesh = mesh_of(4, 2)
    code, out, formula = CODES[name]
    expected = {((W,), dtype, False): formula(4, SIZE) * np.dtype(dtype).itemsize}
    args = payload(mesh, dtype)
    assert both(spread(lambda x: code(x, 4), mesh, out), mesh, args) == (expected, expected)


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_reduce_scatter(dtype: str) -> None:
    """Some compilers for CPU make another collective of it, so the compiled program is only asked for its axis."""
    mesh = mesh_of(8)
    code = spread(lambda x: lax.psum_scatter(x, W, tiled=True), mesh)
    [entry] = ledger.traced(code, mesh.shape, payload(mesh, dtype))
    assert (entry.kind, entry.dtype) == ('reduce_scatter', dtype)
    assert entry.sent == Fraction(7, 8) * SIZE * np.dtype(dtype).itemsize
    found = ledger.compiled(jax.jit(code).lower(payload(mesh, dtype)).compile(), mesh)
    assert {e.axes for e in found} == {(W,)}


def test_kinds_and_order() -> None:
    mesh = mesh_of(4)

    def code(x: jax.Array) -> jax.Array:
        x = vary(lax.psum(x, W))
        x = lax.all_gather(x, W)[0]
        x = lax.ppermute(lax.all_to_all(x, W, 0, 0, tiled=True), W, ring(4))
        return lax.psum_scatter(x, W, tiled=True)

    found = [entry.kind for entry in ledger.traced(spread(code, mesh), mesh.shape, payload(mesh))]
    assert found == ['all_reduce', 'all_gather', 'all_to_all', 'permute', 'reduce_scatter']


def test_several_operands_are_entries_by_dtype() -> None:
    mesh = mesh_of(8)
    code = spread(lambda x: lax.psum((x, x + 1, x.astype('int8')), W), mesh, P(), check_vma=False)
    f32, i8 = Fraction(14, 8) * SIZE * 8, Fraction(14, 8) * SIZE
    expected = {((W,), 'float32', False): f32, ((W,), 'int8', False): i8}
    assert both(code, mesh, payload(mesh)) == (expected, expected)


def test_without_types_and_in_groups() -> None:
    mesh = mesh_of(8)
    halves = [[0, 1, 2, 3], [4, 5, 6, 7]]
    code = spread(lambda x: lax.psum(x, W, axis_index_groups=halves), mesh, check_vma=False)
    expected = {((W,), 'float32', False): Fraction(6, 4) * SIZE * 4}
    assert both(code, mesh, payload(mesh)) == (expected, expected)


def test_scan_multiplies() -> None:
    mesh = mesh_of(8)

    def body(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        inner = lax.fori_loop(0, 3, lambda _, y: jnp.sin(lax.ppermute(y, W, ring(8))), x)
        return jnp.cos(inner), lax.psum(x[0], W)

    code = spread(lambda x: lax.scan(body, x, None, length=5), mesh, (P(W), P()))
    expected = {((W,), 'float32', False): Fraction(15 * SIZE * 4) + 5 * Fraction(14, 8) * 40}
    assert both(code, mesh, payload(mesh)) == (expected, expected)


def test_conditionals_nested_in_calls() -> None:
    mesh = mesh_of(4, 2)

    @jax.jit
    def meet(x: jax.Array) -> jax.Array:
        deeper = lax.cond(x[1, 1] > 5, lambda y: lax.ppermute(y, W, ring(4)), lambda y: y * 2, x)
        return deeper + vary(lax.psum(x, W))

    def code(x: jax.Array) -> jax.Array:
        go = lax.psum(x[0, 0], W) > 0
        return jax.checkpoint(lambda x: lax.cond(go, meet, lambda x: x * 3, x))(x)

    expected = {
        ((W,), 'float32', False): Fraction(6, 4) * 4,
        ((W,), 'float32', True): Fraction(6, 4) * SIZE * 4 + SIZE * 4,
    }
    assert both(spread(code, mesh), mesh, payload(mesh)) == (expected, expected)
    depths = [[b.index for b in e.branch] for e in ledger.traced(spread(code, mesh), mesh.shape, payload(mesh))]
    assert depths == [[], [1, 1], [1]]


def test_gradients_through_custom_rules() -> None:
    mesh = mesh_of(8)

    @jax.custom_vjp
    def through(x: jax.Array) -> jax.Array:
        return lax.ppermute(x, W, ring(8))

    through.defvjp(lambda x: (through(x), None), lambda _, g: (lax.ppermute(g, W, ring(8)[::-1]),))
    forward = spread(lambda x: through(jax.nn.relu(x)), mesh)
    gradient = spread(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda y: jnp.sin(through(y)))(x))), mesh)
    once = {((W,), 'float32', False): Fraction(SIZE * 4)}
    assert both(forward, mesh, payload(mesh)) == (once, once)
    # The backward pass computes the forward one again; that of the first time is used by nobody.
    twice = {((W,), 'float32', False): Fraction(2 * SIZE * 4)}
    assert both(gradient, mesh, payload(mesh)) == (twice, twice)


def test_the_gradient_of_shared_parameters_is_seen() -> None:
    """JAX sums it over workers although nobody asked."""
    mesh = mesh_of(8)
    loss = lambda p, x: jnp.sum((x * p) ** 2)  # noqa: E731
    code = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P(W)), out_specs=P())
    shapes = jax.ShapeDtypeStruct((10,), jnp.float32), payload(mesh)
    expected = {((W,), 'float32', False): Fraction(14, 8) * 40}
    assert both(code, mesh, *shapes) == (expected, expected)


def test_what_nobody_uses_is_not_sent() -> None:
    mesh = mesh_of(8)

    def code(x: jax.Array) -> jax.Array:
        lax.psum(x, W)
        carry = lax.scan(lambda c, _: ((c[0] + 1, lax.ppermute(c[1], W, ring(8))), None), (x, x), None, length=2)
        return carry[0][0]

    assert both(spread(code, mesh), mesh, payload(mesh)) == ({}, {})


def test_the_compilers_own_collectives() -> None:
    """The product x @ w, both cut over the model axis: each worker sums its product over that axis."""
    mesh = mesh_of(4, 2)

    def code(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(jnp.sum(x @ w, 0), W)

    step = jax.shard_map(code, mesh=mesh, in_specs=(P(W), P()), out_specs=P(), axis_names={W})
    x = jax.ShapeDtypeStruct((16, 10), jnp.float32, sharding=NamedSharding(mesh, P(W, 'model')))
    w = jax.ShapeDtypeStruct((10, 6), jnp.float32, sharding=NamedSharding(mesh, P('model', None)))
    workers = {((W,), 'float32', False): Fraction(6, 4) * 6 * 4}
    whole = jax.jit(step, out_shardings=NamedSharding(mesh, P()))
    assert ledger.totals(ledger.traced(step, mesh.shape, x, w)) == workers
    found = ledger.compiled(whole.lower(x, w).compile(), mesh)
    assert {e.axes for e in found} >= {('model',), (W,)}
    assert {k: v for k, v in ledger.totals(found).items() if W in k[0]} == workers


def test_shards_that_are_compressed_where_they_lie() -> None:
    """A nested shard_map counts what one device sends, and so does the compiled program."""
    mesh = mesh_of(4, 2)
    cut = P(None, 'model')

    def code(x: jax.Array) -> jax.Array:
        gather = lambda x: jnp.sum(lax.all_gather(x.astype('int8'), W, to='invarying'), 0)  # noqa: E731
        return jax.shard_map(gather, in_specs=cut, out_specs=cut, axis_names={'model'})(x)

    args = jax.ShapeDtypeStruct((4 * ROWS, 10), jnp.float32, sharding=NamedSharding(mesh, P(W, 'model')))
    expected = {((W,), 'int8', False): Fraction(3 * SIZE // 2)}
    traced = ledger.traced(spread(code, mesh, P()), mesh.shape, args)
    program = jax.jit(spread(code, mesh, P()), out_shardings=NamedSharding(mesh, cut)).lower(args).compile()
    assert ledger.totals(traced) == ledger.totals(ledger.compiled(program, mesh)) == expected


@pytest.mark.parametrize('order', [[0, 1, 2, 3, 4, 5, 6, 7], [3, 1, 7, 0, 2, 4, 6, 5]])
def test_devices_in_any_order_and_axes_together(order: list[int]) -> None:
    mesh = mesh_of(4, 2, order=order)

    def code(x: jax.Array) -> tuple[jax.Array, ...]:
        around = [(i, (i + 2) % 8) for i in range(8)]  # two further on the flat mesh is the next worker
        return lax.psum(x, (W, 'model')), lax.ppermute(x, (W, 'model'), around), lax.psum(x, 'model')

    whole = (W, 'model')
    step = jax.shard_map(code, mesh=mesh, in_specs=P(whole), out_specs=(P(), P(whole), P(W)))
    args = jax.ShapeDtypeStruct((8 * ROWS, 10), jnp.float32)
    expected = {
        (whole, 'float32', False): Fraction(14, 8) * SIZE * 4,
        ((W,), 'float32', False): Fraction(SIZE * 4),
        (('model',), 'float32', False): Fraction(SIZE * 4),
    }
    traced = ledger.traced(step, mesh.shape, args)
    assert ledger.totals(traced) == expected
    assert ledger.totals(ledger.compiled(jax.jit(step).lower(args).compile(), mesh)) == expected


def test_random_keys_and_small_types_have_their_size() -> None:
    mesh = mesh_of(4)
    keys = lambda x: jax.random.key_data(lax.all_gather(jax.random.wrap_key_data(x), W))  # noqa: E731
    [entry] = ledger.traced(spread(keys, mesh), mesh.shape, jax.ShapeDtypeStruct((8,), 'uint32'))
    assert (entry.dtype, entry.sent) == ('uint32', 3 * 8)
    nibbles = spread(lambda x: lax.all_gather(x.astype('int4'), W), mesh)
    [entry] = ledger.traced(nibbles, mesh.shape, payload(mesh))
    assert (entry.dtype, entry.sent) == ('int4', Fraction(3 * SIZE, 2))


def test_a_loop_that_data_ends() -> None:
    mesh = mesh_of(8)

    def code(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda y: y[0, 0] < 9, lambda y: lax.ppermute(y, W, ring(8)) + 1, x)

    traced = ledger.traced(spread(code, mesh), mesh.shape, payload(mesh))
    program = jax.jit(spread(code, mesh)).lower(payload(mesh)).compile()
    for entries in (traced, ledger.compiled(program, mesh)):
        assert [(e.kind, e.times) for e in entries] == [('permute', None)]
        [row] = ledger.per_step(entries, {})
        assert (row.frequency, row.bytes_per_step, row.bytes_when_run) == (None, None, SIZE * 4)
        with pytest.raises(ValueError, match='length depends on data'):
            ledger.totals(entries)
