"""The digest of an array equals the NumPy reference, is the same for every sharding, and changes with every change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist.training.checkpoint.digests import _CHUNK, digest, digests

DTYPES = ['bool', 'int8', 'int16', 'int32', 'uint8', 'uint16', 'uint32', 'int64', 'uint64']
DTYPES += ['float8_e4m3fn', 'float16', 'bfloat16', 'float32', 'float64', 'complex64', 'complex128']


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


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DTYPES), shapes, st.integers(0, 99))
def test_the_digest_equals_the_reference(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    x = random_bits(dtype, shape, seed)
    assert digest(x).tolist() == digest_by_numpy(x)


LARGE = [(_CHUNK + 1,), (3, _CHUNK - 1), (2, 3, _CHUNK + 5), (_CHUNK + 1, 1, 2), (1, 700, 100), (5, 1, 0, 9), ()]


@pytest.mark.parametrize('shape', LARGE)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_the_digest_of_many_chunks_equals_the_reference(dtype: str, shape: tuple[int, ...]) -> None:
    x = random_bits(dtype, shape)
    assert digest(x).tolist() == digest_by_numpy(x)
    if x.ndim > 1:  # not contiguous
        assert digest(x.T).tolist() == digest_by_numpy(np.ascontiguousarray(x.T))


def test_the_digests_of_version_0_1() -> None:
    """Checkpoints of earlier versions stay readable: these digests were computed by its programs on the devices."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert [digest(x).tolist(), digest(x > 5).tolist(), digest(x.astype(np.float64)).tolist()] == [
        [2766456290, 4141230780],
        [3381975945, 1543108159],
        [93844000, 2538451436],
    ]


@pytest.mark.parametrize('dtype', ['uint8', 'bfloat16', 'float32', 'float64', 'complex64'])
def test_every_bit_changes_both_halves_of_the_digest(dtype: str) -> None:
    x = random_bits(dtype, (2, 3))
    before = digest(x)
    for bit in range(8 * x.nbytes):
        flipped = bytearray(x.tobytes())
        flipped[bit // 8] ^= 1 << bit % 8
        assert (before != digest(np.frombuffer(flipped, x.dtype).reshape(x.shape))).all()


def test_the_digest_depends_on_the_order_of_elements() -> None:
    x = np.arange(64, dtype=np.float32)
    swapped = x.copy()
    swapped[[3, 40]] = x[[40, 3]]
    orders = [x, swapped, x[::-1], np.roll(x, 1), np.zeros(64, np.float32), np.zeros(65, np.float32)]
    assert len({tuple(digest(order).tolist()) for order in orders}) == len(orders)


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
