"""Attention where devices that share a sequence exchange, once, all that they need.

Gathered: each device gets all keys and values (as Llama 3, Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.2).
Ulysses: each gets all positions of a part of the heads (Jacobs et al. 2023, arXiv 2309.14509).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core.errors import InputError
from jaxdist.models.attention.heads import AXIS as HEADS
from jaxdist.models.attention.heads import head_shards, over_heads
from jaxdist.models.attention.whole import whole_attention
from jaxdist.models.attention.zigzag import AXIS, devices, order, positions


def gathered(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Attention to all keys and values, which each of n devices gathers.

    It sends n - 1 times the bytes of its keys and values forward, and as many backward, by a reduce-scatter.

    Args:
        q: this device's queries [B, t, H, K].
        k: its keys [B, t, G, K].
        v: its values [B, t, G, K].
        causal: see `attend`.

    >>> mesh = jax.make_mesh((2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = lambda q, k: gathered(q, k, k, False)
    >>> x, spec = jnp.arange(16.0).reshape(1, 8, 1, 2), jax.P(None, AXIS)
    >>> jax.shard_map(code, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(0 * x, x)[0, 0, 0]
    Array([7., 8.], dtype=float32)
    """
    t = q.shape[1]
    k, v = _gather(k, k.shape[2]), _gather(v, k.shape[2])
    at, of = (positions(t), order(devices(), t)) if causal else (None, None)
    return whole_attention(q, k, v, at, of)


def ulysses(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Attention of a part of the heads to all positions, on each of n devices.

    It sends (n - 1) / n of the bytes of its queries, keys, values and outputs forward, and as many backward.

    Args:
        q: this device's queries [B, t, H, K].
        k: its keys [B, t, G, K].
        v: its values [B, t, G, K].
        causal: see `attend`.

    Raises:
        InputError: the devices do not divide the heads.

    >>> mesh = jax.make_mesh((2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = lambda q, k: ulysses(q, k, k, False)
    >>> x, spec = jnp.arange(16.0).reshape(1, 4, 2, 2), jax.P(None, AXIS)
    >>> jax.shard_map(code, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(0 * x, x)[0, 0, 0]
    Array([6., 7.], dtype=float32)
    """
    n, t, heads = devices(), q.shape[1], k.shape[2]
    shards = head_shards(heads)
    if heads % (n * shards):
        over = f' and {shards} of mesh axis {HEADS!r}' if shards > 1 else ''
        raise InputError(
            f'ulysses gives each device some of the heads, and {n} devices of mesh axis {AXIS!r}{over} do not divide '
            f'{heads} heads of keys: take the attention ring or gathered, or other sizes'
        )
    lie = order(n, t)
    there = lambda x: jnp.take(_exchange(x, 2, 1, heads), jnp.argsort(lie), axis=1)  # noqa: E731
    out = whole_attention(there(q), there(k), there(v), jnp.arange(n * t) if causal else None)
    return _exchange(jnp.take(out, lie, axis=1), 1, 2, heads)


def _gather(x: jax.Array, heads: int) -> jax.Array:
    """All positions of [B, t, H, K], device after device."""
    return _with_gradient(
        lambda x: lax.all_gather(x, AXIS, axis=1, tiled=True),
        lambda g: lax.psum_scatter(g, AXIS, scatter_dimension=1, tiled=True),
        x,
        heads,
    )


def _exchange(x: jax.Array, split: int, concat: int, heads: int) -> jax.Array:
    """Part j along the dim `split` goes to device j, and what arrives is put together along the dim `concat`."""
    return _with_gradient(
        lambda x: lax.all_to_all(x, AXIS, split, concat, tiled=True),
        lambda g: lax.all_to_all(g, AXIS, concat, split, tiled=True),
        x,
        heads,
    )


def _with_gradient(
    code: Callable[[jax.Array], jax.Array], gradient: Callable[[jax.Array], jax.Array], x: jax.Array, heads: int
) -> jax.Array:
    """`code(x)` with this gradient."""
    run = jax.custom_vjp(over_heads(code, heads))
    run.defvjp(lambda x: (run(x), None), lambda _, g: (over_heads(gradient, heads)(g),))
    out: jax.Array = run(x)
    return out
