"""The digest of an array equals the NumPy reference, is the same for every sharding, and changes with every change."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist.training.checkpoint.digests import _compiled, digest, digests

DTYPES = ['bool', 'int8', 'int16', 'int32', 'uint8', 'uint16', 'uint32', 'int64', 'uint64']
DTYPES += ['float8_e4m3fn', 'float16', 'bfloat16', 'float32', 'float64', 'complex64', 'complex128']
WIDE = ('64', '128')


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    kind = jnp.dtype(dtype)
    data = np.random.default_rng(seed).bytes(int(np.prod(shape)) * kind.itemsize)
    if dtype == 'bool':
        return np.frombuffer(data, 'uint8').reshape(shape) > 127
    return np.frombuffer(data, kind).reshape(shape)


def mix_by_numpy(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def digest_by_numpy(x: np.ndarray) -> list[int]:
    """The reference implementation, on the bytes in memory as one row of words."""
    size = x.dtype.itemsize
    words = np.frombuffer(x.tobytes(), '<u4' if size >= 8 else f'<u{size}').astype(np.uint32)
    first = mix_by_numpy(words ^ mix_by_numpy(np.arange(len(words), dtype=np.uint32) + np.uint32(0x9E3779B9)))
    second = mix_by_numpy(first + np.uint32(0x9E3779B9))
    return [int(lane.sum(dtype=np.uint32)) for lane in (first, second)]


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DTYPES), shapes, st.integers(0, 99))
def test_the_digest_equals_the_numpy_reference(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    with jax.enable_x64(dtype.endswith(WIDE)):
        x = random_bits(dtype, shape, seed)
        assert jax.jit(digest)(jnp.asarray(x)).tolist() == digest_by_numpy(x)


@pytest.mark.parametrize('dtype', ['uint8', 'bfloat16', 'float32', 'float64', 'complex64'])
def test_every_bit_changes_both_halves_of_the_digest(dtype: str) -> None:
    with jax.enable_x64(dtype.endswith(WIDE)):
        x = random_bits(dtype, (2, 3))
        of = jax.jit(digest)
        before = of(jnp.asarray(x))
        for bit in range(8 * x.nbytes):
            flipped = bytearray(x.tobytes())
            flipped[bit // 8] ^= 1 << bit % 8
            after = of(jnp.asarray(np.frombuffer(flipped, x.dtype).reshape(x.shape)))
            assert (before != after).all()


def test_the_digest_depends_on_the_order_of_elements() -> None:
    x = np.arange(64, dtype=np.float32)
    swapped = x.copy()
    swapped[[3, 40]] = x[[40, 3]]
    orders = [x, swapped, x[::-1], np.roll(x, 1), np.zeros(64, np.float32), np.zeros(65, np.float32)]
    assert len({tuple(digest(jnp.asarray(order)).tolist()) for order in orders}) == len(orders)


@pytest.mark.parametrize('kind', [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_the_digest_is_the_same_for_every_sharding(kind: jax.sharding.AxisType) -> None:
    x = random_bits('float32', (8, 4))
    mesh = jax.make_mesh((4, 2), ('workers', 'model'), axis_types=(kind, kind))
    both = ('model', 'workers')
    specs = [jax.P(), jax.P('workers'), jax.P('workers', 'model'), jax.P(None, 'workers'), jax.P(both)]
    leaves = {str(spec): jax.device_put(x, jax.NamedSharding(mesh, spec)) for spec in specs}
    leaves['one device'] = jax.device_put(x, jax.devices()[3])
    first, second = digest_by_numpy(x)
    assert set(digests(leaves).values()) == {f'{first:08x}{second:08x}'}


def test_a_digest_needs_no_collective() -> None:
    """On emulated devices many programs with collectives in flight at once can deadlock."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ('workers', 'model'))
    x = jax.device_put(jnp.zeros((8, 4)), jax.NamedSharding(mesh, jax.P('workers', 'model')))
    text = _compiled(x.sharding).lower(x).compile().as_text()
    assert not re.search('all-reduce|all-gather|all-to-all|collective|reduce-scatter', text)
