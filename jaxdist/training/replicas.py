"""Finds copies of an array that differ: a bit has flipped in a device's memory, or a device computes wrongly.

Arrays that all workers have alike are stored once a device. Nothing compares the copies: a device whose copy has
changed goes on with it, and the others get its gradients (Hochschild et al., Cores that don't count, HotOS 2021).
"""

from collections import Counter
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdist import cluster
from jaxdist.core.errors import JaxdistError
from jaxdist.training.checkpoint.manifest import is_key, named

GOLDEN = 0x9E3779B9


class ReplicaError(JaxdistError):
    """Copies of one array differ; the message names the array, the device and its process."""

    exit_code = cluster.STUCK


def check_replicas(state: Any) -> None:
    """Compares a checksum of 32 bits of each copy of each array of a state; does nothing without a mesh.

    Each device reads its arrays once, and sends nothing; the checksums of all are compared on the hosts.

    Raises:
        ReplicaError: copies differ.

    >>> check_replicas({'w': jnp.ones(3)})
    """
    leaves = {name: x for name, x in named(state).items() if isinstance(x.sharding, NamedSharding) and x.size}
    arrays = [jax.random.key_data(x) if is_key(x) else x for x in leaves.values()]
    if not leaves or len(arrays[0].sharding.device_set) == 1:
        return
    shardings: list[Any] = [x.sharding for x in arrays]
    mesh = shardings[0].mesh
    with jax.transfer_guard('allow'):
        sums = _checksums(mesh, tuple(sharding.spec for sharding in shardings))(arrays)
        rows = {shard.device.id: np.asarray(shard.data).reshape(-1).tolist() for shard in sums.addressable_shards}
    of_device = {int(k): row for each in cluster.gather(rows, 'replicas') for k, row in each.items()}
    process_of = {device.id: device.process_index for device in mesh.devices.flat}
    for column, (name, x) in enumerate(zip(leaves, arrays, strict=True)):
        groups: dict[str, list[int]] = {}
        for device, index in x.sharding.devices_indices_map(x.shape).items():
            groups.setdefault(str(index), []).append(device.id)
        for devices in groups.values():
            _compare(name, {device: of_device[device][column] for device in devices}, process_of)


def _compare(name: str, sums: dict[int, int], process_of: dict[int, int]) -> None:
    most, count = Counter(sums.values()).most_common(1)[0]
    wrong = [device for device, value in sums.items() if value != most]
    if not wrong:
        return
    where = ', '.join(f'device {device} (process {process_of[device]})' for device in wrong)
    known = f'from the {count} other copies' if count > len(sums) / 2 else 'and no value has a majority'
    raise ReplicaError(
        f'{name} differs on {where} {known}: a bit has changed in its memory, or it computes wrongly. Start the run '
        'again, without that machine if it happens twice: it goes on from the last checkpoint, saved before'
    )


@lru_cache
def _checksums(mesh: Any, specs: tuple[Any, ...]) -> Any:
    """The program: arrays with these shardings to checksums [devices, leaves], one row on each device."""
    local = lambda arrays: jnp.stack([_checksum(x) for x in arrays])[None]  # noqa: E731
    rows = P(tuple(mesh.axis_names))
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(list(specs),), out_specs=rows, check_vma=False))


def _checksum(x: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of the bits of each element, mixed with its index; changes with each change of one bit."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if x.dtype == jnp.bool_:
        words = x.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{min(x.dtype.itemsize * 8, 32)}'))
        words = bits.astype(jnp.uint32)
    words = words.reshape(-1)
    index = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(GOLDEN)
    mixed = words ^ index
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
