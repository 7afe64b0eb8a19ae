"""Fully sharded data parallelism in a worker: each device has 1/F of parameters, gradients and optimiser state.

ZeRO, stages 2 and 3 (Rajbhandari et al. 2020, arXiv 1910.02054). Each device evaluates its part of the worker's batch
at gathered parameters; the gradient of a gather is a reduce-scatter. Both are written out, for what the compiler makes
of sharding rules depends on its version: an all-reduce in place of a reduce-scatter on CPU, and activations that are
all-reduced in every layer where the batch is not sharded alike.
"""

import functools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.codecs.codec import AnyCodec
from jaxdist.core import collectives
from jaxdist.core import mesh as meshes
from jaxdist.core.errors import InputError
from jaxdist.core.partition import Evaluate, OwnGradient, cast_params
from jaxdist.core.protocol import is_spec
from jaxdist.core.shards import on_shards
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.parallel.within import on_devices


class Fsdp(NamedTuple):
    """How fully sharded workers gather parameters and scatter gradients.

    Attributes:
        regather: whether each block of a model in parts is gathered when it is evaluated, forward and backward, and
            none is kept (ZeRO stage 3).
        gathers: the codec of gathered parameters; None for exact ones.
        scatters: the codec of scattered gradients; None for exact sums.
    """

    regather: bool = False
    gathers: AnyCodec | None = None
    scatters: AnyCodec | None = None


class FullySharded(NamedTuple):
    """The partition of a worker over an axis on which its parameters and its batch are sharded.

    Each device sends (F - 1) / F of the parameters' bytes for the gather, in the dtype in which the loss sees them, and
    the same number of entries for the gradient, in the parameters' dtype. Parameters that are whole on every device
    cost an all-reduce of their gradient.

    Attributes:
        specs: the `PartitionSpec` of each parameter.
        size: the number of devices F.
        axis: the mesh axis.
        loops: see `Partition`.
        repeats: see `Partition`.
        microbatches: see `Partition`.
        own_gradient: see `Partition`.
    """

    specs: Any
    size: int
    axis: str = 'fsdp'
    loops: bool = False
    repeats: Fraction = Fraction(1)
    microbatches: int = 1
    own_gradient: OwnGradient | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """See `Partition.axes`."""
        return (self.axis,)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return (self.axis,)

    @property
    def batch_shards(self) -> int:
        """F: each device evaluates its part of the batch."""
        return self.size

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        share, count = Fraction(self.size - 1, self.size), functools.partial(entry_bytes, params, self.specs, self.axis)
        # A gather and a reduce-scatter, or the all-reduce of what is whole on every device.
        entries = count(sizes, compute, sharded=True) + count(sizes, None, sharded=True)
        scalars = scalar_bytes(loss, params, batch)
        return {self.axis: share * (entries + 2 * count(sizes, None, sharded=False) + 2 * scalars)}

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The whole parameters, gathered in the dtype in which the loss sees them."""
        whole = lambda spec, x: gathered(collectives.pvary(x, self.axis), spec, self.axis)  # noqa: E731
        return jax.tree.map(whole, self.specs, cast_params(params, compute), is_leaf=is_spec)

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the sum of gradients."""
        return jax.tree.map(lambda spec, g: scattered(g, spec, self.axis), self.specs, grads, is_leaf=is_spec)

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """`evaluate` on every device; see `on_devices`."""
        return on_devices(evaluate, (self.axis,), self.specs, self.batch_axes, (params, state, batch, key), graded)


def gathered(x: jax.Array, spec: P, axis: str) -> jax.Array:
    """A whole parameter, from the shards over a manual axis; one that is not sharded over it is returned as it is.

    Args:
        x: this device's shard.
        spec: the parameter's `PartitionSpec`. Other axes in it are the compiler's, and stay sharded.
        axis: the mesh axis.

    >>> mesh = jax.make_mesh((2,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> whole = lambda x: gathered(x, P('fsdp'), 'fsdp')[None]
    >>> jax.shard_map(whole, mesh=mesh, in_specs=P('fsdp'), out_specs=P('fsdp'))(jnp.arange(4)).tolist()
    [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    if axis not in spec:
        return x
    return on_shards(lambda x: lax.all_gather(x, axis, axis=list(spec).index(axis), tiled=True), spec)(x)


def scattered(g: jax.Array, spec: P, axis: str) -> jax.Array:
    """The sum over a manual axis, of which each device gets its shard; whole if the spec does not have the axis.

    Args:
        g: this device's term.
        spec: the `PartitionSpec` of the sum.
        axis: the mesh axis.

    >>> mesh = jax.make_mesh((2,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = lambda x: scattered(x[0], P('fsdp'), 'fsdp')
    >>> jax.shard_map(code, mesh=mesh, in_specs=P('fsdp'), out_specs=P('fsdp'))(jnp.arange(4).reshape(2, 2)).tolist()
    [2, 4]
    """
    # Without the barrier, XLA for TPU adds up in bfloat16 what was cast from it.
    g = lax.optimization_barrier(g)
    if axis not in spec:
        return on_shards(lambda g: lax.psum(g, axis), spec)(g)
    dim = list(spec).index(axis)
    return on_shards(lambda g: lax.psum_scatter(g, axis, scatter_dimension=dim, tiled=True), spec)(g)


def entry_bytes(
    params: Params, specs: Any, axis: str, sizes: Mapping[str, int], compute: jax.typing.DTypeLike | None, sharded: bool
) -> Fraction:
    """Bytes of the parameters that an axis shards, or of all others, on a device that has them whole over the axis.

    Args:
        params: the parameters' shapes.
        specs: the `PartitionSpec` of each.
        axis: the mesh axis.
        sizes: the mesh's sizes by axis.
        compute: the dtype to which real numbers are cast; None for their own.
        sharded: which of them.

    >>> params, specs = {'w': jnp.ones((4, 2)), 'b': jnp.ones(3)}, {'w': P('fsdp', 'model'), 'b': P()}
    >>> entry_bytes(params, specs, 'fsdp', {'fsdp': 2, 'model': 2}, jnp.bfloat16, sharded=True)
    Fraction(8, 1)
    """
    seen = jax.eval_shape(lambda params: cast_params(params, compute), params)
    return sum(
        (
            Fraction(x.size * x.dtype.itemsize, shards(spec, {**sizes, axis: 1}))
            for x, spec in zip(jax.tree.leaves(seen), spec_leaves(specs), strict=True)
            if (axis in spec) == sharded
        ),
        Fraction(0),
    )


def scalar_bytes(loss: Loss, params: Params, batch: Batch) -> int:
    """Bytes of the sums and the count of a loss.

    >>> scalar_bytes(lambda params, batch, key: ({'loss': 0.0 * params}, 1), jnp.float32(1), {}), jnp.zeros(()).nbytes
    (8, 4)
    """
    sums = jax.eval_shape(loss, params, batch, jax.random.key(0))[0]
    return sum(x.dtype.itemsize for x in [*jax.tree.leaves(sums), jnp.zeros(())])


def shards(spec: P, sizes: Mapping[str, int]) -> int:
    """The number of shards of a tensor on a mesh of these sizes.

    >>> shards(P('model', None, 'fsdp'), {'workers': 8, 'model': 2, 'fsdp': 4})
    8
    """
    return math.prod(sizes[name] for name in spec if name is not None)


def spec_leaves(specs: Any) -> list[P]:
    """The specs of a pytree's leaves.

    >>> spec_leaves({'w': P('model'), 'b': P()})
    [P(), P('model',)]
    """
    leaves: list[P] = jax.tree.leaves(specs, is_leaf=is_spec)
    return leaves


def fully_sharded(
    params: Params, specs: Any, sizes: Mapping[str, int], axis: str = 'fsdp', chunks: int = 1
) -> tuple[Any, FullySharded]:
    """The specs with every parameter sharded over the axis, and the partition of a worker.

    A parameter that no rule shards over the axis is sharded along the largest dim that the axis divides and no other
    axis shards. One without such a dim stays whole on every device.

    Args:
        params: the parameters' shapes.
        specs: the `PartitionSpec` of each parameter, by the model's rules.
        sizes: the mesh's sizes by axis.
        axis: the mesh axis.
        chunks: the chunks in which the blocks of a model in parts are stored.

    Raises:
        InputError: no parameter has a dim that the axis divides.

    >>> of = lambda *shape: jax.ShapeDtypeStruct(shape, 'float32')
    >>> specs, partition = fully_sharded({'w': of(8, 6), 'b': of(3)}, {'w': P('model'), 'b': P()}, {'fsdp': 2})
    >>> specs, partition.batch_shards
    ({'b': P(), 'w': P('model', 'fsdp')}, 2)
    """
    size = sizes[axis]
    in_parts = isinstance(params, dict) and set(params) == {'edge', 'blocks'}

    def with_axis(path: Any, spec: P, x: Any) -> P:
        # Rows of blocks are evaluated one after the other, and each device has a part of each.
        rows = in_parts and path[0].key == 'blocks'
        return _with(spec, x.shape, axis, size, first=1 + (chunks > 1) if rows else 0)

    full = jax.tree_util.tree_map_with_path(with_axis, specs, params, is_leaf=is_spec)
    if not any(axis in spec for spec in spec_leaves(full)):
        shapes = {meshes.path_text(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
        raise InputError(
            f'no parameter has a dim that {size} devices of mesh axis {axis!r} divide: choose another size; the '
            f'parameters are {shapes}'
        )
    return full, FullySharded(full, size, axis)


def _with(spec: P, shape: tuple[int, ...], axis: str, size: int, first: int) -> P:
    """The spec with the axis at the largest dim, from dim `first` on, that it divides and no other axis shards."""
    if axis in spec:
        return spec
    dims = [*spec, *(None,) * (len(shape) - len(spec))]
    free = [dim for dim, n in enumerate(shape) if dim >= first and dims[dim] is None and n and n % size == 0]
    if not free:
        return spec
    dims[max(free, key=lambda dim: shape[dim])] = axis
    while dims[-1] is None:
        dims.pop()
    return P(*dims)
