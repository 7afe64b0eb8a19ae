"""The order of collectives on emulated devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives


def after(tree: Any, first: Any) -> Any:
    """The same values as `tree`, on a CPU not before `first` is computed.

    Emulated devices wait for each other in a few threads. If one begins a collective inside of a loop or a branch, and
    another one outside of it that does not depend on it, each waits for ever. (XLA for CPU ignores optimisation
    barriers.)

    Args:
        tree: arrays.
        first: arrays, of real numbers.

    >>> after(jnp.arange(2), jnp.ones(3))
    Array([0, 1], dtype=int32)
    """
    leaves = [x for x in jax.tree.leaves(first) if x.size]
    axes: set[str] = set().union(*(jax.typeof(x).mat.varying for x in [*leaves, *jax.tree.leaves(tree)]))
    for axis in sorted(axes):
        tree = collectives.pvary(tree, axis)

    def late(tree: Any, leaves: list[jax.Array]) -> Any:
        unknown = sum(jnp.isnan(x.ravel()[0]).astype(jnp.int32) for x in leaves)
        return jax.tree.map(lambda x: jnp.where(unknown >= 0, x, jnp.zeros_like(x)), tree)

    return lax.platform_dependent(tree, leaves, cpu=late, default=lambda tree, leaves: tree) if leaves else tree
