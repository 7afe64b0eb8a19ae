"""Copies of an array that differ are found, and the device is named."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_fixtures import SMALL, finish

from jaxdist.training import run
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.replicas import ReplicaError, check_replicas
from jaxdist.training.step import State
from jaxdist.training.train import Training, TrainingStep

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


def test_a_run_does_not_save_a_state_of_which_a_copy_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run.train

    def flipped(training: Training, state: State) -> Iterator[TrainingStep]:
        for each in real(training, state):
            leaves, tree = jax.tree.flatten(each.state.params)
            pieces = [shard.data + (each.step == 4 and k == 2) for k, shard in enumerate(leaves[0].addressable_shards)]
            leaves[0] = jax.make_array_from_single_device_arrays(leaves[0].shape, leaves[0].sharding, pieces)
            yield each._replace(state=each.state._replace(params=jax.tree.unflatten(tree, leaves)))

    monkeypatch.setattr(run, 'train', flipped)
    with pytest.raises(ReplicaError, match=r'differs on device 2 \(process 0\) from the 3 other copies'):
        finish(dataclasses.replace(SMALL, check_replicas=True), tmp_path)
    assert Checkpoints(tmp_path / 'checkpoints').steps() == [2]
