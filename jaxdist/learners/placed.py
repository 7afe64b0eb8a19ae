"""Moves arrays between the host and a learner's devices, which may be those of several processes.

All processes of a learner make these calls in the same order: an array that they share is gathered by a collective.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather


def on_host(tree: Any) -> Any:
    """The whole arrays on the host of every process.

    >>> on_host({'w': jax.numpy.ones(2), 'b': None})
    {'b': None, 'w': array([1., 1.], dtype=float32)}
    """

    def fetched(x: Any) -> Any:
        here = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return jax.device_get(x) if here else process_allgather(x, tiled=True)

    return jax.tree.map(fetched, tree)


def on_devices(tree: Any, like: Any) -> Any:
    """Arrays of the host or of devices, sharded as those of `like`; what is there already is not moved.

    >>> one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> on_devices(np.ones(2), jax.ShapeDtypeStruct((2,), 'float32', sharding=one))
    Array([1., 1.], dtype=float32)
    """

    def moved(x: Any, shape: Any) -> jax.Array:
        if isinstance(x, jax.Array) or shape.sharding.is_fully_addressable:
            return jax.device_put(x, shape.sharding)
        whole = np.asarray(x)  # of which each process takes its part; `device_put` would compare all of it
        return jax.make_array_from_callback(whole.shape, shape.sharding, lambda at: whole[at])

    return jax.tree.map(moved, tree, like)


def from_first(tree: Any, like: Any) -> Any:
    """Process 0's arrays of the host on every process, bit for bit: bytes are sent, as a sum may change a zero's sign.

    Args:
        tree: on process 0 the arrays; elsewhere it is not read.
        like: their shapes.

    >>> from_first({'w': np.ones(2)}, {'w': np.zeros(2)})
    {'w': array([1., 1.])}
    """
    if jax.process_count() == 1:
        return tree
    leaves, treedef = jax.tree.flatten(like)
    mine = jax.tree.leaves(tree) if jax.process_index() == 0 else leaves
    return jax.tree.unflatten(treedef, [_bytes_from_first(x, shape) for x, shape in zip(mine, leaves, strict=True)])


def _bytes_from_first(x: Any, like: Any) -> np.ndarray:
    dtype = np.dtype(like.dtype)
    first = jax.process_index() == 0
    sent = np.frombuffer(np.asarray(x).tobytes(), np.uint8) if first else np.zeros(like.size * dtype.itemsize, np.uint8)
    return np.asarray(broadcast_one_to_all(sent)).view(dtype).reshape(like.shape)
