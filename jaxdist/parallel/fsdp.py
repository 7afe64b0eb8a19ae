"""Fully sharded data parallelism in a worker: each device has 1/F of parameters, gradients and optimiser state.

ZeRO, stages 2 and 3 (Rajbhandari et al. 2020, arXiv 1910.02054). Each device evaluates its part of the worker's batch
at gathered parameters; the gradient of a gather is a reduce-scatter. Both are written out, for what the compiler makes
of sharding rules depends on its version: an all-reduce in place of a reduce-scatter on CPU, and activations that are
all-reduced in every layer where the batch is not sharded alike.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core import mesh as meshes
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Evaluate
from jaxdist.core.protocol import is_spec
from jaxdist.core.types import Batch, Params


class FullySharded(NamedTuple):
    """The partition of a worker over an axis on which its parameters and its batch are sharded.

    Each device sends (F - 1) / F of the parameters' bytes for the gather, in the dtype in which the loss sees them, and
    the same number of entries for the gradient, in the parameters' dtype. Parameters that are whole on every device
    cost an all-reduce of their gradient.

    Attributes:
        specs: the `PartitionSpec` of each parameter.
        size: the number of devices F.
        axis: the mesh axis.
    """

    specs: Any
    size: int
    axis: str = 'fsdp'

    @property
    def batch_shards(self) -> int:
        """F: each device evaluates its part of the batch."""
        return self.size

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None) -> Params:
        """The whole parameters, from this device's shards."""
        return jax.tree.map(lambda spec, x: gathered(x, spec, self.axis, compute), self.specs, params, is_leaf=is_spec)

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate` on every device; sums are added up, and of a model state the mean is taken."""
        mine = jax.tree.map(lambda spec: _only(spec, self.axis), self.specs, is_leaf=is_spec)

        def on_device(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
            # Where the batch is divided, dropout must not repeat itself.
            key = jax.random.fold_in(key, lax.axis_index(self.axis))
            sums, grads, after = evaluate(params, state, batch, key)
            return collectives.psum(sums, self.axis), grads, jax.tree.map(self._agreed, after)

        rows = jax.tree.map(lambda _: P(self.axis), batch)
        out = (P(), mine if graded else (), P())
        # JAX has no gradient of a nested shard_map, so it is taken inside of this one.
        inside = jax.shard_map(on_device, in_specs=(mine, P(), rows, P()), out_specs=out, axis_names={self.axis})
        return inside(params, state, batch, key)

    def _agreed(self, x: jax.Array) -> jax.Array:
        """One value of the model state on all devices: their mean, of integers the largest."""
        if not collectives.varies(x, self.axis):
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise InputError('the model state has a random key that depends on the batch, which fsdp devices divide')
        return collectives.pmean(x, self.axis) if jnp.issubdtype(x.dtype, jnp.inexact) else lax.pmax(x, self.axis)


def gathered(x: jax.Array, spec: P, axis: str, compute: jax.typing.DTypeLike | None = None) -> jax.Array:
    """A whole parameter, from the shards over an axis that is manual; its gradient is added up and sharded.

    The gather is in the dtype `compute`, the sum of gradients in the parameter's.

    Args:
        x: this device's shard.
        spec: the parameter's `PartitionSpec`. Other axes in it are the compiler's, and stay sharded.
        axis: the mesh axis.
        compute: the dtype in which the loss sees it; None for its own.
    """
    dtype = compute if compute is not None and jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    if axis not in spec:
        return collectives.pvary(x, axis).astype(dtype)
    dim, others = list(spec).index(axis), P(*(None if name == axis else name for name in spec))
    names = {name for name in others if name is not None}

    def there(code: Any) -> Any:
        # Left to itself, the compiler would gather a parameter over its own axes as well.
        return jax.shard_map(code, in_specs=others, out_specs=others, axis_names=names) if names else code

    gather = there(lambda x: lax.all_gather(x.astype(dtype), axis, axis=dim, tiled=True))
    scatter = there(lambda g: lax.psum_scatter(g.astype(x.dtype), axis, scatter_dimension=dim, tiled=True))
    # Its derivative is given, since JAX has none of a nested shard_map.
    whole = jax.custom_vjp(gather)
    whole.defvjp(lambda x: (gather(x), None), lambda _, g: (scatter(g),))
    out: jax.Array = whole(x)
    return out


def fully_sharded(params: Params, specs: Any, sizes: Mapping[str, int], axis: str = 'fsdp') -> tuple[Any, FullySharded]:
    """The specs with every parameter sharded over the axis, and the partition of a worker.

    A parameter that no rule shards over the axis is sharded along the largest dim that the axis divides and no other
    axis shards. One without such a dim stays whole on every device.

    Args:
        params: the parameters' shapes.
        specs: the `PartitionSpec` of each parameter, by the model's rules.
        sizes: the mesh's sizes by axis.
        axis: the mesh axis.

    Raises:
        InputError: no parameter has a dim that the axis divides.

    >>> of = lambda *shape: jax.ShapeDtypeStruct(shape, 'float32')
    >>> specs, partition = fully_sharded({'w': of(8, 6), 'b': of(3)}, {'w': P('model'), 'b': P()}, {'fsdp': 2})
    >>> specs, partition.batch_shards
    ({'b': P(), 'w': P('model', 'fsdp')}, 2)
    """
    size = sizes[axis]
    full = jax.tree.map(lambda spec, x: _with(spec, x.shape, axis, size), specs, params, is_leaf=is_spec)
    if not any(axis in spec for spec in jax.tree.leaves(full, is_leaf=is_spec)):
        shapes = {meshes.path_text(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
        raise InputError(
            f'no parameter has a dim that {size} devices of mesh axis {axis!r} divide: choose another size; the '
            f'parameters are {shapes}'
        )
    return full, FullySharded(full, size, axis)


def _with(spec: P, shape: tuple[int, ...], axis: str, size: int) -> P:
    if axis in spec:
        return spec
    dims = [*spec, *(None,) * (len(shape) - len(spec))]
    free = [dim for dim, n in enumerate(shape) if dims[dim] is None and n and n % size == 0]
    if not free:
        return spec
    dims[max(free, key=lambda dim: shape[dim])] = axis
    while dims[-1] is None:
        dims.pop()
    return P(*dims)


def _only(spec: P, axis: str) -> P:
    return P(*(name if name == axis else None for name in spec))
