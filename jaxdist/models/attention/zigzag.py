"""Which positions of a sequence a device has: of 2 C pieces, device i has the pieces i and 2 C - 1 - i (zigzag).

Under a causal mask all devices then have the same to compute (Llama 3, Grattafiori et al. 2024, arXiv 2407.21783,
section 3.3.2).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.errors import InputError

AXIS = 'context'


def devices() -> int:
    """The number of devices C among which sequences are divided here; 1 outside of a mesh with the axis `context`.

    >>> devices()
    1
    """
    return collectives.axis_size(AXIS) if collectives.is_manual(AXIS) else 1


def positions(length: int) -> jax.Array:
    """The positions of this device's `length` tokens in their sequence, int32 [length].

    >>> positions(4).tolist()
    [0, 1, 2, 3]
    """
    n = devices()
    return jnp.arange(length) if n == 1 else places(collectives.axis_index(AXIS), n, length)


def places(device: jax.Array | int, n: int, length: int) -> jax.Array:
    """The positions of the tokens of one of n devices, which has `length` of them.

    >>> places(0, 2, 4).tolist(), places(1, 2, 4).tolist()
    ([0, 1, 6, 7], [2, 3, 4, 5])
    """
    half = length // 2
    rest = jnp.arange(half)
    return jnp.concatenate([device * half + rest, (2 * n - 1 - device) * half + rest])


def order(n: int, length: int) -> jax.Array:
    """The positions of the tokens of all n devices, one device after the other.

    >>> order(2, 4).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    """
    return jnp.concatenate([places(device, n, length) for device in range(n)])


def local(x: jax.Array, dim: int = 1) -> jax.Array:
    """This device's positions of `x`, along the dim of a sequence; all of them where sequences are not divided.

    A loss takes them of its inputs and of its targets, and returns sums and a count over them.

    Args:
        x: [B, T, ...], the same on all devices of a sequence.
        dim: the dim of positions.

    Raises:
        InputError: twice the number of devices does not divide the positions.

    >>> mesh = jax.make_mesh((2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = jax.shard_map(local, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(None, AXIS))
    >>> code(jnp.arange(8).reshape(1, 8)).tolist()  # of the first device, then of the second
    [[0, 1, 6, 7, 2, 3, 4, 5]]
    """
    n, length = devices(), x.shape[dim]
    if n == 1:
        return x
    if length % (2 * n):
        low, high = length // (2 * n) * 2 * n, (length // (2 * n) + 1) * 2 * n
        raise InputError(
            f'a sequence of {length} positions cannot be divided among {n} devices of mesh axis {AXIS!r}, which have '
            f'two pieces each: {f"{low} or {high}" if low else high} would do'
        )
    me = collectives.axis_index(AXIS)
    pieces = x.reshape(*x.shape[:dim], 2 * n, length // (2 * n), *x.shape[dim + 1 :])
    own = jnp.take(pieces, jnp.stack([me, 2 * n - 1 - me]), axis=dim)
    return lax.collapse(own, dim, dim + 2)
