"""Collectives on a mesh and simulated against NumPy: values, types and bytes; bytes and vectors round trip."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxdist import ledger
from jaxdist.core import collectives
from jaxdist.core.bits import flatten, from_bytes, to_bytes, unflatten

W = collectives.AXIS
COUNTS = (1, 2, 3, 8)


def on_mesh(fn: Callable[..., Any], count: int, axis: str = W) -> Callable[..., Any]:
    """`fn` for each worker's row of [W, ...] arguments; rows come back as [W, ...]."""
    mesh = jax.make_mesh((count,), (axis,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])

    def code(*rows: Any) -> Any:
        out = fn(*jax.tree.map(lambda x: x[0], rows))
        return jax.tree.map(lambda x: collectives.pvary(x, axis)[None], out)

    return jax.jit(jax.shard_map(code, mesh=mesh, in_specs=jax.P(axis), out_specs=jax.P(axis)))


def simulated(fn: Callable[..., Any], count: int, axis: str = W) -> Callable[..., Any]:
    return jax.jit(jax.vmap(fn, axis_name=axis, axis_size=count))


@pytest.fixture(params=[on_mesh, simulated])
def spread(request: pytest.FixtureRequest) -> Any:
    return request.param


def rows(count: int, *shape: int, dtype: str = 'float32') -> np.ndarray:
    return np.random.default_rng(count).integers(-9, 9, (count, *shape)).astype(dtype)


def everyone(x: np.ndarray, count: int) -> np.ndarray:
    """What all share, as a row for each worker."""
    return np.broadcast_to(x, (count, *x.shape))


@pytest.mark.parametrize('count', COUNTS)
def test_every_collective_is_what_numpy_makes_of_the_rows(spread: Any, count: int) -> None:
    x, ones, matrix = rows(count, 2, 3), rows(count, dtype='int32'), rows(count, count, 2)

    def code(x: Any, one: Any, matrix: Any) -> Any:
        tree = {'x': x, 'one': one}
        return {
            'index': collectives.axis_index(),
            'size': jnp.int32(collectives.axis_size()),
            'total': collectives.psum(tree),
            'mean': collectives.pmean(x),
            'gather': collectives.all_gather(x),
            'exchange': collectives.all_to_all(matrix),
            'per_worker': collectives.pvary(tree),
        }

    got = spread(code, count)(x, ones, matrix)
    want = {
        'index': np.arange(count),
        'size': np.full(count, count),
        'total': {'x': everyone(x.sum(0), count), 'one': everyone(ones.sum(0), count)},
        'mean': everyone(x.mean(0), count),
        'gather': everyone(x, count),
        'exchange': matrix.swapaxes(0, 1),
        'per_worker': {'x': x, 'one': ones},
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_another_axis_has_its_own_workers(spread: Any) -> None:
    code = lambda x: (
        collectives.psum(x, 'clients'),
        collectives.axis_index('clients'),
        collectives.all_gather(x, 'clients'),
    )
    total, index, gathered = spread(code, 3, 'clients')(np.float32([1, 2, 4]))
    assert (total.tolist(), index.tolist(), gathered[2].tolist()) == ([7, 7, 7], [0, 1, 2], [1, 2, 4])


def test_what_all_share_counts_once_for_each_worker(spread: Any) -> None:
    """A value that does not vary is still sent by all: its mean is itself and its total W times it."""
    shared = jnp.float32(5)
    code = lambda x: (collectives.pmean({'a': shared, 'b': x}), collectives.psum(shared))  # noqa: E731
    mean, total = spread(code, 3)(np.float32([1, 2, 6]))
    assert (mean['a'].tolist(), mean['b'].tolist(), total.tolist()) == ([5] * 3, [3] * 3, [15] * 3)


@pytest.mark.parametrize('typed', [False, True])
def test_gather_of_what_all_share(spread: Any, typed: bool) -> None:
    shared = jnp.arange(6.0).reshape(3, 2)
    gathered = spread(lambda _: collectives.all_gather(collectives.pvary(shared) if typed else shared), 3)(np.zeros(3))
    np.testing.assert_array_equal(gathered, np.broadcast_to(shared, (3, 3, 3, 2)))


def test_exchange_of_what_all_share_simulated() -> None:
    exchange_shared(simulated)


def test_exchange_of_what_all_share_on_a_mesh() -> None:
    exchange_shared(on_mesh)


def exchange_shared(spread: Any) -> None:
    shared = jnp.arange(6.0).reshape(3, 2)
    exchanged = spread(lambda _: collectives.all_to_all(shared), 3)(np.zeros(3))
    np.testing.assert_array_equal(exchanged, np.repeat(shared[:, None], 3, axis=1))


def test_types_say_what_may_differ() -> None:
    seen: dict[str, bool] = {}

    def code(x: Any) -> Any:
        values = {
            'argument': x,
            'constant': jnp.ones(4),
            'typed': collectives.pvary(jnp.ones(4)),
            'typed twice': collectives.pvary(collectives.pvary(jnp.ones(4))),
            'index': collectives.axis_index(),
            'total': collectives.psum(x),
            'mean': collectives.pmean(x),
            'gather': collectives.all_gather(x),
            'exchange': collectives.all_to_all(x),
        }
        seen.update({name: collectives.varies(value) for name, value in values.items()})
        return x

    on_mesh(code, 4)(np.ones((4, 4), np.float32))
    assert {name for name, varies in seen.items() if varies} == {
        'argument', 'typed', 'typed twice', 'index', 'exchange'
    }  # fmt: skip


def test_where_an_axis_is_one_of_a_mesh() -> None:
    seen = []
    code = lambda x: seen.append((collectives.is_manual(), collectives.is_manual('other'))) or x  # noqa: E731
    on_mesh(code, 2)(np.ones(2))
    simulated(code, 2)(np.ones(2))
    assert seen == [(True, False), (False, False)]


def test_the_gradient_of_per_worker_parameters_is_local(spread: Any) -> None:
    """And of parameters that all share, JAX sums it over the workers of a mesh: the reason for `per_worker`."""
    x = np.float32([1, 2, 6])
    local = lambda x: jax.grad(lambda p: p * x)(collectives.pvary(jnp.float32(1)))  # noqa: E731
    np.testing.assert_array_equal(spread(local, 3)(x), x)
    summed = lambda x: jax.grad(lambda p: p * x)(jnp.float32(1))  # noqa: E731
    assert on_mesh(summed, 3)(x).tolist() == [9, 9, 9]


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize(
    'collective, share',
    [
        (collectives.psum, lambda w: Fraction(2 * (w - 1), w)),
        (collectives.pmean, lambda w: Fraction(2 * (w - 1), w)),
        (collectives.all_gather, lambda w: Fraction(w - 1)),
        (collectives.all_to_all, lambda w: Fraction(w - 1, w)),
    ],
)
def test_bytes_sent_are_those_of_the_docstring(collective: Any, share: Any, count: int) -> None:
    x = jax.ShapeDtypeStruct((count, 2 * count), jnp.int16)
    entries = ledger.traced(on_mesh(collective, count), {W: count}, x)
    assert sum(entry.sent for entry in entries) == share(count) * 2 * 2 * count


def test_a_tree_crosses_in_one_collective_a_dtype() -> None:
    tree = {'a': rows(8, 3), 'b': rows(8, 2, 2), 'c': rows(8), 'd': rows(8, 5, dtype='int32')}
    text = on_mesh(collectives.psum, 8).lower(tree).compile().as_text()
    assert len(re.findall(r' all-reduce(?:-start)?\(', text)) == 2


DTYPES = ['float32', 'float16', 'bfloat16', 'float8_e4m3fn', *(f'{s}int{n}' for s in ('', 'u') for n in (8, 16, 32))]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from([(), (2, 3)]), st.integers(1, 2), st.data())
def test_bytes_are_the_numbers_own_and_give_them_back(name: str, lead: tuple[int, ...], n: int, data: Any) -> None:
    """Any bits, those of NaN among them; the little ends of all come first; all dims but the last stay."""
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    size = int(np.prod((*lead, n))) * dtype.itemsize
    raw = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8).reshape(*lead, -1)
    planes = np.swapaxes(raw.reshape(*lead, n, -1), -1, -2).reshape(raw.shape)
    numbers = from_bytes(jnp.asarray(planes), dtype)
    assert (numbers.dtype, numbers.shape) == (dtype, (*lead, n))
    assert np.asarray(numbers).tobytes() == raw.tobytes()
    back = to_bytes(numbers)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, planes)


SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(SHAPES, st.sampled_from(['float32', 'bfloat16', 'int8']))
def test_flatten_is_numpys_concatenate_and_unflatten_its_inverse(shapes: list[tuple[int, ...]], name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    leaves = [(np.arange(np.prod(shape)) + 10 * i).astype(dtype).reshape(shape) for i, shape in enumerate(shapes)]
    vector = flatten([jnp.asarray(x) for x in leaves])
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, np.concatenate([np.float32(x).ravel() for x in leaves]))
    for piece, leaf in zip(unflatten(vector, leaves), leaves, strict=True):
        assert (piece.dtype, piece.shape) == (np.float32, leaf.shape)
        np.testing.assert_array_equal(piece, np.float32(leaf))
