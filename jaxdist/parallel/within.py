"""Code on every device of a worker: the one region in which axes inside a worker are manual."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Evaluate
from jaxdist.core.protocol import is_spec
from jaxdist.core.types import Batch, Params


def on_devices(
    evaluate: Evaluate,
    axes: Sequence[str],
    specs: Any,
    batch_axis: str | None,
    args: tuple[Params, Any, Batch, jax.Array],
    graded: bool = True,
) -> Any:
    """`evaluate(*args)` on every device, with these axes manual.

    Sums are added up over the axis that divides the batch, and of a model state the mean is taken.

    Args:
        evaluate: `(params, state, batch, key) -> (sums, gradient, state)` on one device.
        axes: the axes.
        specs: the `PartitionSpec` of each parameter; its other axes stay the compiler's.
        batch_axis: the one of the axes that divides the batch, if there is one.
        args: the arguments.
        graded: whether there is a gradient; if not, () is in its place.

    >>> total = lambda params, state, batch, key: (batch['x'].sum(), params, state)
    >>> with jax.set_mesh(jax.make_mesh((2,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))):
    ...     args = jnp.ones(2), (), {'x': jnp.arange(4.0)}, jax.random.key(0)
    ...     on_devices(total, ['fsdp'], P('fsdp'), 'fsdp', args)[0]
    Array(6., dtype=float32)
    """
    mine = jax.tree.map(lambda spec: _only(spec, axes), specs, is_leaf=is_spec)

    def on_device(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
        if batch_axis is None:
            return evaluate(params, state, batch, key)
        # Where the batch is divided, dropout must not repeat itself.
        key = jax.random.fold_in(key, lax.axis_index(batch_axis))
        sums, grads, after = evaluate(params, state, batch, key)
        return collectives.psum(sums, batch_axis), grads, jax.tree.map(lambda x: _agreed(x, batch_axis), after)

    rows = jax.tree.map(lambda _: P(batch_axis) if batch_axis else P(), args[2])
    out = (P(), mine if graded else (), P())
    # JAX has no gradient of a nested shard_map, so it is taken inside of this one.
    return jax.shard_map(on_device, in_specs=(mine, P(), rows, P()), out_specs=out, axis_names=set(axes))(*args)


def _agreed(x: jax.Array, axis: str) -> jax.Array:
    """One value of the model state on all devices: their mean, of integers the largest."""
    if not collectives.varies(x, axis):
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise InputError(f'the model state has a random key that depends on the batch, which {axis!r} divides')
    return collectives.pmean(x, axis) if jnp.issubdtype(x.dtype, jnp.inexact) else lax.pmax(x, axis)


def _only(spec: P, axes: Sequence[str]) -> P:
    return P(*(name if name in axes else None for name in spec))
