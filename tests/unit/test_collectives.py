"""Collectives on a mesh and simulated, against NumPy: values, types and bytes sent; conversions to bytes and back."""

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

from jaxdist import ledger, line
from jaxdist.codecs._exchange import EXCHANGES
from jaxdist.codecs.codec import Codec
from jaxdist.core import collectives
from jaxdist.core.bits import flatten, from_bytes, to_bytes, unflatten

W = collectives.AXIS
COUNTS = (1, 2, 3, 8)


def on_mesh(fn: Callable[..., Any], count: int, axis: str = W) -> Callable[..., Any]:
    """`fn` on a mesh, applied to each worker's row of [W, ...] arguments; results are [W, ...]."""
    mesh = jax.make_mesh((count,), (axis,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])

    def code(*rows: Any) -> Any:
        out = fn(*jax.tree.map(lambda x: x[0], rows))
        return jax.tree.map(lambda x: collectives.pvary(x, axis)[None], out)

    return jax.jit(jax.shard_map(code, mesh=mesh, in_specs=jax.P(axis), out_specs=jax.P(axis)))


def simulated(fn: Callable[..., Any], count: int, axis: str = W) -> Callable[..., Any]:
    return jax.jit(jax.vmap(fn, axis_name=axis, axis_size=count))


@pytest.fixture(params=[on_mesh, simulated])
def run_on(request: pytest.FixtureRequest) -> Any:
    return request.param


def rows(count: int, *shape: int, dtype: str = 'float32') -> np.ndarray:
    return np.random.default_rng(count).integers(-9, 9, (count, *shape)).astype(dtype)


def replicated(x: np.ndarray, count: int) -> np.ndarray:
    """The same row for each worker."""
    return np.broadcast_to(x, (count, *x.shape))


@pytest.mark.parametrize('count', COUNTS)
def test_every_collective_matches_numpy(run_on: Any, count: int) -> None:
    x, ones, matrix = rows(count, 2, 3), rows(count, dtype='int32'), rows(count, count, 2)

    def code(x: Any, one: Any, matrix: Any) -> Any:
        tree = {'x': x, 'one': one}
        return {
            'index': collectives.axis_index(),
            'size': jnp.int32(collectives.axis_size()),
            'psum': collectives.psum(tree),
            'pmean': collectives.pmean(x),
            'all_gather': collectives.all_gather(x),
            'all_to_all': collectives.all_to_all(matrix),
            'pvary': collectives.pvary(tree),
        }

    actual = run_on(code, count)(x, ones, matrix)
    expected = {
        'index': np.arange(count),
        'size': np.full(count, count),
        'psum': {'x': replicated(x.sum(0), count), 'one': replicated(ones.sum(0), count)},
        'pmean': replicated(x.mean(0), count),
        'all_gather': replicated(x, count),
        'all_to_all': matrix.swapaxes(0, 1),
        'pvary': {'x': x, 'one': ones},
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)


def test_another_name_of_the_axis(run_on: Any) -> None:
    def code(x: Any) -> Any:
        axis = 'clients'
        return collectives.psum(x, axis), collectives.axis_index(axis), collectives.all_gather(x, axis)

    total, index, gathered = run_on(code, 3, 'clients')(np.float32([1, 2, 4]))
    assert (total.tolist(), index.tolist(), gathered[2].tolist()) == ([7, 7, 7], [0, 1, 2], [1, 2, 4])


def test_a_replicated_value_counts_once_for_each_worker(run_on: Any) -> None:
    """All workers contribute it: its mean is itself, its sum is W times it."""
    value = jnp.float32(5)
    code = lambda x: (collectives.pmean({'a': value, 'b': x}), collectives.psum(value))  # noqa: E731
    mean, total = run_on(code, 3)(np.float32([1, 2, 6]))
    assert (mean['a'].tolist(), mean['b'].tolist(), total.tolist()) == ([5] * 3, [3] * 3, [15] * 3)


@pytest.mark.parametrize('typed', [False, True])
def test_all_gather_of_replicated_values(run_on: Any, typed: bool) -> None:
    values = jnp.arange(6.0).reshape(3, 2)
    gathered = run_on(lambda _: collectives.all_gather(collectives.pvary(values) if typed else values), 3)(np.zeros(3))
    np.testing.assert_array_equal(gathered, np.broadcast_to(values, (3, 3, 3, 2)))


def test_all_to_all_of_replicated_values_simulated() -> None:
    check_all_to_all(simulated)


def test_all_to_all_of_replicated_values_on_a_mesh() -> None:
    check_all_to_all(on_mesh)


def check_all_to_all(run_on: Any) -> None:
    values = jnp.arange(6.0).reshape(3, 2)
    exchanged = run_on(lambda _: collectives.all_to_all(values), 3)(np.zeros(3))
    np.testing.assert_array_equal(exchanged, np.repeat(values[:, None], 3, axis=1))


def test_types_of_results() -> None:
    types: dict[str, bool] = {}

    def code(x: Any) -> Any:
        values = {
            'argument': x,
            'constant': jnp.ones(4),
            'typed': collectives.pvary(jnp.ones(4)),
            'typed twice': collectives.pvary(collectives.pvary(jnp.ones(4))),
            'index': collectives.axis_index(),
            'psum': collectives.psum(x),
            'pmean': collectives.pmean(x),
            'all_gather': collectives.all_gather(x),
            'all_to_all': collectives.all_to_all(x),
        }
        types.update({name: collectives.varies(value) for name, value in values.items()})
        return x

    on_mesh(code, 4)(np.ones((4, 4), np.float32))
    assert {name for name, varies in types.items() if varies} == {
        'argument', 'typed', 'typed twice', 'index', 'all_to_all'
    }  # fmt: skip


def test_is_manual() -> None:
    answers = []
    code = lambda x: answers.append((collectives.is_manual(), collectives.is_manual('other'))) or x  # noqa: E731
    on_mesh(code, 2)(np.ones(2))
    simulated(code, 2)(np.ones(2))
    assert answers == [(True, False), (False, False)]


def test_the_gradient_of_varying_parameters_is_local(run_on: Any) -> None:
    """JAX sums the gradient of replicated parameters over the workers of a mesh: the reason for `pvary`."""
    x = np.float32([1, 2, 6])
    local = lambda x: jax.grad(lambda p: p * x)(collectives.pvary(jnp.float32(1)))  # noqa: E731
    np.testing.assert_array_equal(run_on(local, 3)(x), x)
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


def test_a_tree_is_sent_in_one_collective_for_each_dtype() -> None:
    tree = {'a': rows(8, 3), 'b': rows(8, 2, 2), 'c': rows(8), 'd': rows(8, 5, dtype='int32')}
    text = on_mesh(collectives.psum, 8).lower(tree).compile().as_text()
    assert len(re.findall(r' all-reduce(?:-start)?\(', text)) == 2


DTYPES = ['float32', 'float16', 'bfloat16', 'float8_e4m3fn', *(f'{s}int{n}' for s in ('', 'u') for n in (8, 16, 32))]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from([(), (2, 3)]), st.integers(1, 2), st.data())
def test_bytes_are_those_of_the_numbers_and_convert_back(name: str, lead: tuple[int, ...], n: int, data: Any) -> None:
    """For any bits, those of NaN too; the lowest bytes of all numbers come first; leading dims do not change."""
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
def test_flatten_matches_numpy_and_unflatten_inverts_it(shapes: list[tuple[int, ...]], name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    leaves = [(np.arange(np.prod(shape)) + 10 * i).astype(dtype).reshape(shape) for i, shape in enumerate(shapes)]
    vector = flatten([jnp.asarray(x) for x in leaves])
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, np.concatenate([np.float32(x).ravel() for x in leaves]))
    for piece, leaf in zip(unflatten(vector, leaves), leaves, strict=True):
        assert (piece.dtype, piece.shape) == (np.float32, leaf.shape)
        np.testing.assert_array_equal(piece, np.float32(leaf))


@pytest.mark.parametrize('count, served', [(1, 1), (3, 3), (8, 3), (8, 8)])
def test_serve_answers_rows_with_what_the_server_has(run_on: Any, count: int, served: int) -> None:
    x, own = rows(count, served, 5), rows(count, 5) + 100

    def code(x: Any, own: Any) -> Any:
        return collectives.serve(x, {'own': own}, lambda rows, j, its: (rows.sum(0) * j + its['own'], rows[0] + j))

    heard, kept = run_on(code, count)(x, own)
    index = np.arange(served)[:, None]
    np.testing.assert_array_equal(heard, replicated(x.sum(0) * index + own[:served], count))
    np.testing.assert_array_equal(kept[:served], x[0] + index)


@pytest.mark.parametrize('text', ['int8()', pytest.param('majority()', marks=pytest.mark.slow)])
def test_the_cost_of_simulated_workers_is_linear(text: str) -> None:
    """Two phases of four times as many workers read and write no more than about four times as many bytes."""
    bytes_of = [accessed(text, count) for count in (16, 64)]
    assert bytes_of[1] < 6 * bytes_of[0], bytes_of


def accessed(text: str, count: int) -> float:
    """Bytes that a compiled compressed mean of 600 entries accesses."""
    codec = line.build_codec(text)
    assert isinstance(codec, Codec)
    mean = lambda x, key: EXCHANGES['two_phases'].mean(x, codec, key, W, collectives.axis_index())  # noqa: E731
    program = jax.jit(jax.vmap(mean, axis_name=W, in_axes=(0, None)))
    cost = program.lower(jnp.zeros((count, 600)), jax.random.key(0)).compile().cost_analysis()
    return float(cost['bytes accessed'])
