"""Fully sharded workers that gather parameters and scatter gradients through codecs, as ZeRO++ does.

Wang et al. 2023 (arXiv 2306.10209): qwZ gathers weights in 8 bits by blocks, qgZ scatters gradients in 4 by one
all-to-all, and adds them up decoded. Here each tensor has any codec of messages, of one device's shard.
"""

import functools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.codecs import _exchange as exchange
from jaxdist.codecs.codec import AnyCodec, Codec, Reducer, padded, resolve
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.mesh import path_text
from jaxdist.core.partition import Evaluate, OwnGradient, cast_params
from jaxdist.core.shards import on_shards
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.parallel.fsdp import FullySharded, gathered, scattered, shards, spec_leaves


class Quantised(NamedTuple):
    """The partition of a fully sharded worker whose messages are encoded.

    Parameters that are whole on every device, and those that are no real numbers, are not encoded.

    Attributes:
        sharded: how the worker is sharded.
        gathers: the codec of each parameter; None for an exact gather.
        scatters: the codec of each gradient; None for an exact sum.
    """

    sharded: FullySharded
    gathers: tuple[Codec | None, ...]
    scatters: tuple[Codec | None, ...]
    loops: bool = False
    repeats: Fraction = Fraction(1)
    microbatches: int = 1
    own_gradient: OwnGradient | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """See `Partition.axes`."""
        return self.sharded.axes

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """See `Partition.batch_axes`."""
        return self.sharded.batch_axes

    @property
    def batch_shards(self) -> int:
        """F: each device evaluates its part of the batch."""
        return self.sharded.size

    def sends(
        self, loss: Loss, params: Params, batch: Batch, sizes: Mapping[str, int],
        compute: jax.typing.DTypeLike | None = None,
    ) -> dict[str, Fraction]:  # fmt: skip
        """See `Partition.sends`."""
        axis, size = self.sharded.axis, self.sharded.size
        total = self.sharded.sends(loss, params, batch, sizes, compute)[axis]
        seen = jax.eval_shape(lambda params: cast_params(params, compute), params)
        for codecs, tree in ((self.gathers, seen), (self.scatters, params)):
            for codec, x, spec in zip(codecs, jax.tree.leaves(tree), spec_leaves(self.sharded.specs), strict=True):
                if codec is not None and _is_encoded(x, spec, axis):
                    n = x.size // shards(spec, sizes)
                    total += (size - 1) * (codec.size(padded(n, codec.block)) - n * x.dtype.itemsize)
        return {axis: total}

    def gather(self, params: Params, compute: jax.typing.DTypeLike | None, key: jax.Array) -> Params:
        """The whole parameters, decoded."""
        seen = collectives.pvary(cast_params(params, compute), self.sharded.axis)
        return self._each(seen, self.gathers, jax.random.fold_in(key, 0), _gather, gathered)

    def scatter(self, grads: Params, key: jax.Array) -> Params:
        """The shards of the sum of decoded gradients."""
        return self._each(grads, self.scatters, jax.random.fold_in(key, 1), _scatter, scattered)

    def _each(self, tree: Any, codecs: tuple[Codec | None, ...], key: jax.Array, coded: Any, exact: Any) -> Any:
        """Each leaf, by `coded` if it has a codec and else by `exact`."""
        axis, (leaves, treedef) = self.sharded.axis, jax.tree.flatten(tree)
        out = []
        for number, (x, codec, spec) in enumerate(zip(leaves, codecs, spec_leaves(self.sharded.specs), strict=True)):
            if codec is None or not _is_encoded(x, spec, axis):
                out.append(exact(x, spec, axis))
            else:
                noise = jax.random.fold_in(key, number)
                out.append(on_shards(functools.partial(coded, spec, axis, codec, noise), spec)(x))
        return jax.tree.unflatten(treedef, out)

    def run(
        self, evaluate: Evaluate, params: Params, state: Any, batch: Batch, key: jax.Array, graded: bool = True
    ) -> Any:
        """See `FullySharded.run`."""
        return self.sharded.run(evaluate, params, state, batch, key, graded)


def quantised(sharded: FullySharded, params: Params, gathers: AnyCodec | None, scatters: AnyCodec | None) -> Quantised:
    """The partition of a fully sharded worker with these codecs.

    Args:
        sharded: how the worker is sharded.
        params: the parameters' shapes.
        gathers: the codec of parameters; None for exact gathers.
        scatters: the codec of gradients; None for exact sums.

    Raises:
        InputError: a codec has its own collectives, as `power_sgd`, or is a vote, as `majority`.

    >>> from jaxdist.codecs.int8 import int8
    >>> params, sharded = {'w': jax.ShapeDtypeStruct((8, 4), 'float32')}, FullySharded({'w': P('fsdp')}, 2)
    >>> partition = quantised(sharded, params, int8(), None)
    >>> [codec.block for codec in partition.gathers], partition.scatters
    ([256], (None,))
    """
    tensors = [(path_text(path), x.shape) for path, x in jax.tree_util.tree_leaves_with_path(params)]
    return Quantised(sharded, _messages(gathers, tensors, 'gathers'), _messages(scatters, tensors, 'scatters'))


def _messages(codec: AnyCodec | None, tensors: list[tuple[str, Any]], name: str) -> tuple[Codec | None, ...]:
    """The codec of each tensor."""
    chosen: list[Codec | None] = []
    for each in resolve(codec, tensors):
        if isinstance(each, Reducer) or (each is not None and each.votes):
            raise InputError(f'{name} takes a codec of messages that add up, such as int8(): this one has none')
        chosen.append(each)
    return tuple(chosen)


def _gather(spec: P, axis: str, codec: Codec, key: jax.Array, x: jax.Array) -> jax.Array:
    """The whole of a tensor along the axis, from decoded shards."""
    size, dim = lax.axis_size(axis), list(spec).index(axis)
    flat, real = _blocks(x.reshape(1, -1), codec)
    decoded, _ = exchange.all_gather(flat[0], real[0], codec, jax.random.fold_in(key, _place(spec)), axis)
    pieces = decoded[:, : x.size].reshape(size, *x.shape)
    whole = jnp.moveaxis(pieces, 0, dim).reshape(*x.shape[:dim], size * x.shape[dim], *x.shape[dim + 1 :])
    return collectives.pvary(whole.astype(x.dtype), axis)


def _scatter(spec: P, axis: str, codec: Codec, key: jax.Array, g: jax.Array) -> jax.Array:
    """This device's shard of the sum of decoded terms; its own term is not encoded."""
    size, dim = lax.axis_size(axis), list(spec).index(axis)
    pieces = jnp.moveaxis(g.reshape(*g.shape[:dim], size, g.shape[dim] // size, *g.shape[dim + 1 :]), dim, 0)
    parts, real = _blocks(pieces.reshape(size, -1), codec)
    keys = jax.random.split(jax.random.fold_in(key, _place(spec)), size)
    mean, _ = exchange.reduce_scatter(parts, real, codec, keys, axis, lax.axis_index(axis))
    return (size * mean[: pieces[0].size]).reshape(pieces.shape[1:]).astype(g.dtype)


def _blocks(rows: jax.Array, codec: Codec) -> tuple[jax.Array, jax.Array]:
    """Rows in float32, padded to whole blocks, and which of their entries are not padding."""
    n = rows.shape[1]
    more = ((0, 0), (0, padded(n, codec.block) - n))
    return jnp.pad(rows.astype(jnp.float32), more), jnp.pad(jnp.ones(rows.shape, bool), more)


def _place(spec: P) -> jax.Array:
    """The number of this device's shard: each is rounded with independent noise."""
    return lax.axis_index(tuple(name for name in spec if name is not None))


def _is_encoded(x: Any, spec: P, axis: str) -> bool:
    return axis in spec and bool(jnp.issubdtype(x.dtype, jnp.floating))
