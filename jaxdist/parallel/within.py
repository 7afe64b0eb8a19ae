"""Code on every device of a worker: the one region in which axes inside a worker are manual."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.emulated import after
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Evaluate
from jaxdist.core.protocol import is_spec
from jaxdist.core.types import Batch, Params


def on_devices(
    evaluate: Evaluate,
    axes: Sequence[str],
    specs: Any,
    batch_axes: tuple[str, ...],
    args: tuple[Params, Any, Batch, jax.Array],
    graded: bool = True,
    sequence_axis: str | None = None,
) -> Any:
    """`evaluate(*args)` on every device, with these axes manual.

    Sums are added up over the axes that divide examples or their sequences, and of a model state the mean is taken.

    Args:
        evaluate: `(params, state, batch, key) -> (sums, gradient, state)` on one device.
        axes: the axes.
        specs: the `PartitionSpec` of each parameter; its other axes stay the compiler's.
        batch_axes: those of the axes that divide the examples of the batch.
        args: the arguments.
        graded: whether there is a gradient; if not, () is in its place.
        sequence_axis: the one of the axes whose devices evaluate positions of the same examples, if there is one.

    >>> total = lambda params, state, batch, key: (batch['x'].sum(), params, state)
    >>> with jax.set_mesh(jax.make_mesh((2,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))):
    ...     args = jnp.ones(2), (), {'x': jnp.arange(4.0)}, jax.random.key(0)
    ...     on_devices(total, ['fsdp'], P('fsdp'), ('fsdp',), args)[0]
    Array(6., dtype=float32)
    """
    mine = jax.tree.map(lambda spec: _only(spec, axes), specs, is_leaf=is_spec)

    def on_device(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
        divided = (*batch_axes, *([sequence_axis] if sequence_axis else []))
        for axis in divided:  # dropout must not repeat itself
            key = jax.random.fold_in(key, lax.axis_index(axis))
        sums, grads, new = evaluate(params, state, batch, key)
        sums = after(sums, _no_wider(grads, sums)) if sequence_axis is not None else sums
        for axis in divided:
            sums, new = collectives.psum(sums, axis), jax.tree.map(functools.partial(_agreed, axis), new)
        return sums, grads, new

    rows = jax.tree.map(lambda _: P(batch_axes) if batch_axes else P(), args[2])
    out = (P(), mine if graded else (), P())
    # JAX has no gradient of a nested shard_map, so it is taken inside of this one.
    return jax.shard_map(on_device, in_specs=(mine, P(), rows, P()), out_specs=out, axis_names=set(axes))(*args)


def _no_wider(tree: Any, like: Any) -> list[jax.Array]:
    """The arrays of a tree that differ between no devices on which those of `like` do not."""
    of = lambda x: jax.typeof(x).mat.varying  # noqa: E731
    axes = frozenset.intersection(*(of(x) for x in jax.tree.leaves(like)))
    return [x for x in jax.tree.leaves(tree) if of(x) <= axes]


def _agreed(axis: str, x: jax.Array) -> jax.Array:
    """One value of the model state on all devices: their mean, of integers the largest."""
    if not collectives.varies(x, axis):
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise InputError(f'the model state has a random key that depends on the batch, which {axis!r} divides')
    return collectives.pmean(x, axis) if jnp.issubdtype(x.dtype, jnp.inexact) else lax.pmax(x, axis)


def _only(spec: P, axes: Sequence[str]) -> P:
    return P(*(name if name in axes else None for name in spec))
