"""Checksums of arrays, computed on the host by NumPy, so that no program is compiled; independent of the sharding."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from jaxdist import cluster

_GOLDEN = 0x9E3779B9
_CHUNK = 1 << 15
"""Elements that are mixed at a time: they and their indices stay in a processor's cache."""


def digest(x: jax.Array | np.ndarray) -> np.ndarray:
    """Returns a checksum [2] uint32 of the bits of `x` [...]: bool, complex, or integers or floats of 8 to 64 bits.

    The bits of each element are mixed with its flat index by a bijection (the finaliser of MurmurHash3, by Austin
    Appleby) and summed modulo 2^32. A change within 32 bits of one element always changes the checksum; any other
    change goes undetected with a probability of about 2^-64. Beyond 2^32 elements the indices repeat.

    >>> x = np.arange(6.0)
    >>> bool((digest(x) == digest(x + 0)).all()), bool((digest(x) == digest(x[::-1])).any())
    (True, False)
    """
    block = np.asarray(x)
    return _sums(block, 0, _strides(block.shape))


def digests(leaves: Mapping[str, jax.Array]) -> dict[str, str]:
    """Returns the digest of each array as 16 hexadecimal digits; every process of a run gets the same.

    Each process copies its shards to the host, a replicated one once, and adds their sums to those of the others.

    >>> digests({'w': jax.numpy.zeros(3)}) == digests({'w': jax.numpy.zeros(3).at[0].set(-0.0)})
    False
    """
    with ThreadPoolExecutor() as pool:  # NumPy releases the lock of the interpreter
        jobs = [
            [
                pool.submit(_sums, np.asarray(shard.data), _first(shard.index, x.shape), _strides(x.shape))
                for shard in x.addressable_shards
                if shard.replica_id == 0
            ]
            for x in leaves.values()
        ]
        parts = [[job.result() for job in each] for each in jobs]
    here = np.array([sum(part, np.zeros(2, np.uint32)) for part in parts], np.uint32).reshape(-1, 2)
    totals = np.array(cluster.gather(here.tolist(), 'digests'), np.uint32)
    sums = totals.sum(axis=0, dtype=np.uint32).reshape(-1, 2).tolist()
    return {name: f'{a:08x}{b:08x}' for name, (a, b) in zip(leaves, sums, strict=True)}


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The difference in flat index between neighbours along each dim."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _first(index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """The flat index of a shard's first element."""
    return sum((part.start or 0) * stride for part, stride in zip(index, _strides(shape), strict=True))


def _sums(block: np.ndarray, first: int, strides: tuple[int, ...]) -> np.ndarray:
    """The two sums [2] over a block of an array, whose first element has the flat index `first` in the array."""
    if block.size <= _CHUNK:
        return _chunk_sums(block, first, strides)
    sums = np.zeros(2, np.uint32)
    rows = _CHUNK * len(block) // block.size
    for row in range(0, len(block), max(rows, 1)):
        start = first + row * strides[0]
        part = _sums(block[row : row + rows], start, strides) if rows else _sums(block[row], start, strides[1:])
        sums += part
    return sums


def _chunk_sums(block: np.ndarray, first: int, strides: tuple[int, ...]) -> np.ndarray:
    index: np.ndarray = np.array([first % 2**32], np.uint32)
    for size, stride in zip(block.shape, strides, strict=True):
        index = (index[:, None] + np.arange(size, dtype=np.uint32) * np.uint32(stride % 2**32)).ravel()
    size = block.dtype.itemsize
    words = np.ascontiguousarray(block).reshape(-1).view(f'<u{min(size, 4)}').astype(np.uint32)
    if size > 4:  # two words for each element, or four
        count = size // 4
        index = (index[:, None] * np.uint32(count) + np.arange(count, dtype=np.uint32)).ravel()
    mixed = words ^ _mix(index + np.uint32(_GOLDEN))
    mixed = _mix(mixed)
    return np.array([mixed.sum(dtype=np.uint32), _mix(mixed + np.uint32(_GOLDEN)).sum(dtype=np.uint32)])


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3, in place."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x
