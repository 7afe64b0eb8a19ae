"""Copies of an array that differ are found, and the device is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist.training.replicas import ReplicaError, check_replicas

KINDS = ('float32', 'bfloat16', 'int8', 'bool', 'complex64')


def copies(spec: jax.P, changed: int | None, kind: str) -> jax.Array:
    """An array [8, 6] on a mesh of 4 x 2; one device's copy has one bit that differs."""
    mesh = jax.make_mesh((4, 2), ('workers', 'model'), devices=jax.devices()[:8])
    sharding = jax.NamedSharding(mesh, spec)
    whole = np.arange(48).reshape(8, 6).astype(jnp.dtype(kind))
    pieces = []
    for device, index in sharding.devices_indices_map(whole.shape).items():
        piece = whole[index].copy()
        if device.id == changed:
            flat = piece.reshape(-1).view('uint8')
            flat[-1] ^= 1
        pieces.append(jax.device_put(piece, device))
    return jax.make_array_from_single_device_arrays(whole.shape, sharding, pieces)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('spec', [jax.P(), jax.P('model')])
def test_one_bit_on_one_device_is_found(spec: jax.P, kind: str) -> None:
    state = {'same': copies(spec, None, kind), 'w': copies(spec, 5, kind)}
    check_replicas({'same': state['same'], 'split': copies(jax.P('workers', 'model'), 5, 'float32')})
    with pytest.raises(
        ReplicaError, match=r"state\['w'\] differs on device 5 \(process 0\) from the [37] other copies"
    ):
        check_replicas(state)


def test_without_a_majority_all_are_named() -> None:
    mesh = jax.make_mesh((2,), ('workers',), devices=jax.devices()[:2])
    pieces = [jax.device_put(jnp.full(3, float(k)), device) for k, device in enumerate(jax.devices()[:2])]
    w = jax.make_array_from_single_device_arrays((3,), jax.NamedSharding(mesh, jax.P()), pieces)
    with pytest.raises(ReplicaError, match=r'differs on device 1 \(process 0\) and no value has a majority'):
        check_replicas([w])
