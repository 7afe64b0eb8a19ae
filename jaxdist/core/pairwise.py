"""Sums by pairs, in an order that does not depend on the number of workers: a fixed binary tree.

Floating-point sums depend on their order, and an all-reduce has another order on each number of devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives


def sum_pairs(x: jax.Array) -> jax.Array:
    """The sum over the first dim of `x` [n, ...], with n a power of two: of pairs, then of pairs of these sums.

    >>> sum_pairs(jnp.float32([1e8, 4, 4, -1e8]))  # 4 is half a unit in the last place of 1e8
    Array(0., dtype=float32)
    """
    while len(x) > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def sum_terms(term: Callable[[jax.Array], Any], levels: int, start: jax.typing.ArrayLike = 0) -> Any:
    """The sum of `term(i)` over the 2 ** levels numbers i from `start` on, in the order of `sum_pairs`.

    It stores one sum for each level, and not all terms.

    Args:
        term: returns a pytree of arrays; it is traced once for each level, and compiled once.
        levels: the depth of the tree.
        start: the first i.

    >>> x = jnp.float32([1e8, 4, 4, -1e8])
    >>> sum_terms(lambda i: x[i], 2), sum_terms(lambda i: x[i], 1, start=2)
    (Array(0., dtype=float32), Array(-1.e+08, dtype=float32))
    """
    if levels == 0:
        return term(jnp.asarray(start, jnp.int32))
    half = 2 ** (levels - 1)

    def add(k: jax.Array, total: Any) -> Any:
        # The first half replaces the zeros: 0.0 + -0.0 is 0.0, and -0.0 would be lost.
        both = sum_terms(term, levels - 1, start + k * half)
        return jax.tree.map(lambda a, b: jnp.where(k == 0, b, a + b), total, both)

    shapes = jax.eval_shape(lambda: sum_terms(term, levels - 1, start))
    return lax.fori_loop(0, 2, add, collectives.zeros(shapes))


def psum_pairs(tree: Any, axis: str = collectives.AXIS) -> Any:
    """The sum over workers, leaf by leaf, in the order of `sum_pairs`; replicated. W is a power of two.

    Each worker adds one part of the entries and sends it to all: as many bytes as `psum`, with the entries of each
    dtype padded to a multiple of W. Where the workers of a smaller number each have the `sum_pairs` of the values of
    several, the result is the same.

    >>> jax.vmap(psum_pairs, axis_name='workers')(jnp.float32([1e8, 4, 4, -1e8]))
    Array([0., 0., 0., 0.], dtype=float32)
    """
    leaves, structure = jax.tree.flatten(tree)
    sums: list[Any] = [None] * len(leaves)
    for dtype in sorted({x.dtype for x in leaves}, key=str):
        members = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        total = _psum_vector(jnp.concatenate([leaves[i].ravel() for i in members]), axis)
        ends = [sum(leaves[j].size for j in members[: n + 1]) for n in range(len(members))]
        for i, part in zip(members, jnp.split(total, ends[:-1]), strict=True):
            sums[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, sums)


def _psum_vector(x: jax.Array, axis: str) -> jax.Array:
    w = collectives.axis_size(axis)
    rows = jnp.pad(collectives.pvary(x, axis), (0, -x.size % w)).reshape(w, -1)
    own = sum_pairs(collectives.all_to_all(rows, axis))
    return collectives.all_gather(own, axis).reshape(-1)[: x.size]
