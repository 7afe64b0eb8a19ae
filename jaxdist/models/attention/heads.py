"""Code on the heads of attention that the compiler's axes leave a device."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jaxdist.core.shards import on_shards

AXIS = 'model'
"""The mesh axis over which the compiler may shard heads."""


def head_shards(heads: int) -> int:
    """The number of parts into which the compiler may shard heads of keys; 1 if its axis does not divide them.

    >>> head_shards(4)
    1
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if AXIS in mesh.manual_axes else mesh.shape.get(AXIS, 1)
    return 1 if heads % size else size


def over_heads(code: Callable[..., Any], heads: int) -> Callable[..., Any]:
    """`code` of arrays [B, T, H, ...] on a device's heads; see `jaxdist.core.shards.on_shards`.

    JAX has no gradient of it.

    Args:
        code: a function of arrays whose dim 2 has heads, that returns such arrays.
        heads: the number of heads of keys.

    >>> over_heads(lambda x: 2 * x, 4)(jax.numpy.ones((1, 1, 4, 1))).shape
    (1, 1, 4, 1)
    """
    return on_shards(code, P(None, None, AXIS) if head_shards(heads) > 1 else P())
