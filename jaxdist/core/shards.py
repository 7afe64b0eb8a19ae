"""Code on the shards over those axes that are the compiler's."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P


def on_shards(code: Callable[..., Any], spec: P) -> Callable[..., Any]:
    """`code` on the shards over those axes of the spec that are the compiler's, inside `shard_map`.

    Left to itself, the compiler would gather a tensor over its own axes as well.

    Args:
        code: a function of shards of tensors, which returns such shards.
        spec: the `PartitionSpec` of all of these tensors.

    >>> on_shards(lambda x: 2 * x, P())(jax.numpy.ones(2))
    Array([2., 2.], dtype=float32)
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    others = P(*(None if name in manual else name for name in spec))
    names = {name for name in others if name is not None}
    return jax.shard_map(code, in_specs=others, out_specs=others, axis_names=names) if names else code
