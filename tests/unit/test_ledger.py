"""Bytes of the traced program, of the compiled one and of the formula agree."""

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


def sharded(code: Callable[..., Any], mesh: Mesh, out: Any = P(W), **options: Any) -> Any:
    return jax.shard_map(code, mesh=mesh, in_specs=P(W), out_specs=out, axis_names={W}, **options)


def payload(mesh: Mesh, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((mesh.shape[W] * ROWS, 10), dtype)


def both(code: Any, mesh: Mesh, *args: Any) -> tuple[ledger.Totals, ledger.Totals]:
    """Bytes over the workers of the traced and of the compiled program."""
    traced = ledger.traced(code, mesh.shape, *args)
    program = jax.jit(code).lower(*args).compile()
    both = ledger.totals(traced), ledger.totals(ledger.compiled(program, mesh))
    return tuple({key: total for key, total in totals.items() if W in key[0]} for totals in both)  # type: ignore[return-value]


def vary(x: jax.Array) -> jax.Array:
    return lax.pcast(x, W, to='varying')


def ring(n: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % n) for i in range(n)]


def one_way(n: int) -> list[tuple[int, int]]:
    """All but the last send; the first also names itself, which sends nothing."""
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
    assert both(sharded(lambda x: code(x, n), mesh, out), mesh, payload(mesh)) == (expected, expected)


@pytest.mark.parametrize('dtype', ['float32', 'int8', 'uint8'])
@pytest.mark.parametrize('name', ['psum', 'all_gather', 'all_to_all', 'ring'])
def test_dtypes(name: str, dtype: str) -> None:
    mesh = mesh_of(4, 2)
    code, out, formula = CODES[name]
    expected = {((W,), dtype, False): formula(4, SIZE) * np.dtype(dtype).itemsize}
    args = payload(mesh, dtype)
    assert both(sharded(lambda x: code(x, 4), mesh, out), mesh, args) == (expected, expected)


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_reduce_scatter(dtype: str) -> None:
    """Some compilers for CPU replace it by another kind: of the compiled program only the axis is checked."""
    mesh = mesh_of(8)
    code = sharded(lambda x: lax.psum_scatter(x, W, tiled=True), mesh)
    [collective] = ledger.traced(code, mesh.shape, payload(mesh, dtype))
    assert (collective.kind, collective.dtype) == ('reduce_scatter', dtype)
    assert collective.sent == Fraction(7, 8) * SIZE * np.dtype(dtype).itemsize
    collectives = ledger.compiled(jax.jit(code).lower(payload(mesh, dtype)).compile(), mesh)
    assert {collective.axes for collective in collectives} == {(W,)}


def test_kinds_and_order() -> None:
    mesh = mesh_of(4)

    def code(x: jax.Array) -> jax.Array:
        x = vary(lax.psum(x, W))
        x = lax.all_gather(x, W)[0]
        x = lax.ppermute(lax.all_to_all(x, W, 0, 0, tiled=True), W, ring(4))
        return lax.psum_scatter(x, W, tiled=True)

    kinds = [collective.kind for collective in ledger.traced(sharded(code, mesh), mesh.shape, payload(mesh))]
    assert kinds == ['all_reduce', 'all_gather', 'all_to_all', 'permute', 'reduce_scatter']


def test_a_jaxpr_may_be_open() -> None:
    mesh = mesh_of(4)
    table = np.arange(240, dtype=np.float32).reshape(24, 10)
    jaxpr = jax.make_jaxpr(sharded(lambda x: lax.psum(x + table, W), mesh, P()))(payload(mesh))
    collectives = ledger.traced(jaxpr, mesh.shape)
    assert ledger.traced(jaxpr.jaxpr, mesh.shape) == collectives
    assert [collective.sent for collective in collectives] == [Fraction(6, 4) * SIZE * 4]


def test_several_operands_are_summed_by_dtype() -> None:
    mesh = mesh_of(8)
    code = sharded(lambda x: lax.psum((x, x + 1, x.astype('int8')), W), mesh, P(), check_vma=False)
    f32, i8 = Fraction(14, 8) * SIZE * 8, Fraction(14, 8) * SIZE
    expected = {((W,), 'float32', False): f32, ((W,), 'int8', False): i8}
    assert both(code, mesh, payload(mesh)) == (expected, expected)


def test_without_types_and_in_groups() -> None:
    mesh = mesh_of(8)
    halves = [[0, 1, 2, 3], [4, 5, 6, 7]]
    code = sharded(lambda x: lax.psum(x, W, axis_index_groups=halves), mesh, check_vma=False)
    expected = {((W,), 'float32', False): Fraction(6, 4) * SIZE * 4}
    assert both(code, mesh, payload(mesh)) == (expected, expected)


def test_scan_multiplies() -> None:
    mesh = mesh_of(8)

    def body(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        inner = lax.fori_loop(0, 3, lambda _, y: jnp.sin(lax.ppermute(y, W, ring(8))), x)
        return jnp.cos(inner), lax.psum(x[0], W)

    code = sharded(lambda x: lax.scan(body, x, None, length=5), mesh, (P(W), P()))
    expected = {((W,), 'float32', False): Fraction(15 * SIZE * 4) + 5 * Fraction(14, 8) * 40}
    assert both(code, mesh, payload(mesh)) == (expected, expected)


def test_conditionals_nested_in_calls() -> None:
    mesh = mesh_of(4, 2)

    @jax.jit
    def synchronise(x: jax.Array) -> jax.Array:
        deeper = lax.cond(x[1, 1] > 5, lambda y: lax.ppermute(y, W, ring(4)), lambda y: y * 2, x)
        return deeper + vary(lax.psum(x, W))

    def code(x: jax.Array) -> jax.Array:
        go = lax.psum(x[0, 0], W) > 0
        return jax.checkpoint(lambda x: lax.cond(go, synchronise, lambda x: x * 3, x))(x)

    expected = {
        ((W,), 'float32', False): Fraction(6, 4) * 4,
        ((W,), 'float32', True): Fraction(6, 4) * SIZE * 4 + SIZE * 4,
    }
    assert both(sharded(code, mesh), mesh, payload(mesh)) == (expected, expected)
    depths = [[b.index for b in e.branch] for e in ledger.traced(sharded(code, mesh), mesh.shape, payload(mesh))]
    assert depths == [[], [1, 1], [1]]


def test_gradients_through_custom_rules() -> None:
    mesh = mesh_of(8)

    @jax.custom_vjp
    def through(x: jax.Array) -> jax.Array:
        return lax.ppermute(x, W, ring(8))

    through.defvjp(lambda x: (through(x), None), lambda _, g: (lax.ppermute(g, W, ring(8)[::-1]),))
    forward = sharded(lambda x: through(jax.nn.relu(x)), mesh)
    gradient = sharded(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda y: jnp.sin(through(y)))(x))), mesh)
    once = {((W,), 'float32', False): Fraction(SIZE * 4)}
    assert both(forward, mesh, payload(mesh)) == (once, once)
    # The backward pass computes the forward one again; of the first one no result is used.
    twice = {((W,), 'float32', False): Fraction(2 * SIZE * 4)}
    assert both(gradient, mesh, payload(mesh)) == (twice, twice)


def test_the_gradient_of_replicated_parameters_is_counted() -> None:
    """JAX sums it over workers implicitly."""
    mesh = mesh_of(8)
    loss = lambda p, x: jnp.sum((x * p) ** 2)  # noqa: E731
    code = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P(W)), out_specs=P())
    shapes = jax.ShapeDtypeStruct((10,), jnp.float32), payload(mesh)
    expected = {((W,), 'float32', False): Fraction(14, 8) * 40}
    assert both(code, mesh, *shapes) == (expected, expected)


def test_dead_collectives_are_not_counted() -> None:
    mesh = mesh_of(8)

    def code(x: jax.Array) -> jax.Array:
        lax.psum(x, W)
        carry = lax.scan(lambda c, _: ((c[0] + 1, lax.ppermute(c[1], W, ring(8))), None), (x, x), None, length=2)
        return carry[0][0]

    assert both(sharded(code, mesh), mesh, payload(mesh)) == ({}, {})


def test_collectives_that_the_compiler_inserts() -> None:
    """The product x @ w of matrices sharded over the model axis: its terms are summed over that axis."""
    mesh = mesh_of(4, 2)

    def code(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(jnp.sum(x @ w, 0), W)

    step = jax.shard_map(code, mesh=mesh, in_specs=(P(W), P()), out_specs=P(), axis_names={W})
    x = jax.ShapeDtypeStruct((16, 10), jnp.float32, sharding=NamedSharding(mesh, P(W, 'model')))
    w = jax.ShapeDtypeStruct((10, 6), jnp.float32, sharding=NamedSharding(mesh, P('model', None)))
    workers = {((W,), 'float32', False): Fraction(6, 4) * 6 * 4}
    replicated = jax.jit(step, out_shardings=NamedSharding(mesh, P()))
    assert ledger.totals(ledger.traced(step, mesh.shape, x, w)) == workers
    collectives = ledger.compiled(replicated.lower(x, w).compile(), mesh)
    assert {collective.axes for collective in collectives} >= {('model',), (W,)}
    assert {k: v for k, v in ledger.totals(collectives).items() if W in k[0]} == workers


def test_a_nested_shard_map() -> None:
    """Its collectives count what one device sends, as those of the compiled program do."""
    mesh = mesh_of(4, 2)
    over_model = P(None, 'model')

    def code(x: jax.Array) -> jax.Array:
        gather = lambda x: jnp.sum(lax.all_gather(x.astype('int8'), W, to='invarying'), 0)  # noqa: E731
        return jax.shard_map(gather, in_specs=over_model, out_specs=over_model, axis_names={'model'})(x)

    args = jax.ShapeDtypeStruct((4 * ROWS, 10), jnp.float32, sharding=NamedSharding(mesh, P(W, 'model')))
    expected = {((W,), 'int8', False): Fraction(3 * SIZE // 2)}
    traced = ledger.traced(sharded(code, mesh, P()), mesh.shape, args)
    program = jax.jit(sharded(code, mesh, P()), out_shardings=NamedSharding(mesh, over_model)).lower(args).compile()
    assert ledger.totals(traced) == ledger.totals(ledger.compiled(program, mesh)) == expected


@pytest.mark.parametrize('order', [[0, 1, 2, 3, 4, 5, 6, 7], [3, 1, 7, 0, 2, 4, 6, 5]])
def test_devices_in_any_order_and_axes_together(order: list[int]) -> None:
    mesh = mesh_of(4, 2, order=order)

    def code(x: jax.Array) -> tuple[jax.Array, ...]:
        around = [(i, (i + 2) % 8) for i in range(8)]  # the device two further is the next worker's
        return lax.psum(x, (W, 'model')), lax.ppermute(x, (W, 'model'), around), lax.psum(x, 'model')

    axes = (W, 'model')
    step = jax.shard_map(code, mesh=mesh, in_specs=P(axes), out_specs=(P(), P(axes), P(W)))
    args = jax.ShapeDtypeStruct((8 * ROWS, 10), jnp.float32)
    expected = {
        (axes, 'float32', False): Fraction(14, 8) * SIZE * 4,
        ((W,), 'float32', False): Fraction(SIZE * 4),
        (('model',), 'float32', False): Fraction(SIZE * 4),
    }
    traced = ledger.traced(step, mesh.shape, args)
    assert ledger.totals(traced) == expected
    assert ledger.totals(ledger.compiled(jax.jit(step).lower(args).compile(), mesh)) == expected


def test_sizes_of_random_keys_and_int4() -> None:
    mesh = mesh_of(4)
    keys = lambda x: jax.random.key_data(lax.all_gather(jax.random.wrap_key_data(x), W))  # noqa: E731
    [collective] = ledger.traced(sharded(keys, mesh), mesh.shape, jax.ShapeDtypeStruct((8,), 'uint32'))
    assert (collective.dtype, collective.sent) == ('uint32', 3 * 8)
    nibbles = sharded(lambda x: lax.all_gather(x.astype('int4'), W), mesh)
    [collective] = ledger.traced(nibbles, mesh.shape, payload(mesh))
    assert (collective.dtype, collective.sent) == ('int4', Fraction(3 * SIZE, 2))


def test_a_loop_whose_length_depends_on_data() -> None:
    mesh = mesh_of(8)

    def code(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda y: y[0, 0] < 9, lambda y: lax.ppermute(y, W, ring(8)) + 1, x)

    traced = ledger.traced(sharded(code, mesh), mesh.shape, payload(mesh))
    program = jax.jit(sharded(code, mesh)).lower(payload(mesh)).compile()
    for collectives in (traced, ledger.compiled(program, mesh)):
        assert [(e.kind, e.times) for e in collectives] == [('permute', None)]
        [row] = ledger.per_step(collectives, {})
        assert (row.frequency, row.bytes_per_step, row.bytes_when_run) == (None, None, SIZE * 4)
        with pytest.raises(ValueError, match='length depends on data'):
            ledger.totals(collectives)
