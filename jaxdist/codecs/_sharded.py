"""Tensors of which each worker stores a part: a reduce-scatter of their means, and an all-gather of the parts.

Worker j's part of a tensor of n entries is entries j k to (j + 1) k, with k = ceil(n / W); the last parts are padded
with zeros. Where the mesh has other axes, each shard over those is split in this way on its devices. Tensors with the
same sharding over those axes share their messages.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.codecs import _exchange as exchange
from jaxdist.codecs._groups import shard_shape, spec_axes
from jaxdist.codecs.codec import Codec, Shape, padded
from jaxdist.core import collectives
from jaxdist.core.protocol import shard_specs


class ShardGroup(NamedTuple):
    """Tensors whose parts share messages.

    Attributes:
        members: the tensors' indices among the leaves of the tree.
        shapes: the shape of each tensor's shard on one device.
        specs: a `PartitionSpec` for each tensor, over the mesh's other axes; None if it has no others.
    """

    members: tuple[int, ...]
    shapes: tuple[Shape, ...]
    specs: tuple[P, ...] | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the tensors are sharded, the same for all."""
        return spec_axes(self.specs[0]) if self.specs else ()

    def part(self, workers: int) -> int:
        """Entries of the group that one worker stores, the padding included."""
        return sum(-(-math.prod(shape) // workers) for shape in self.shapes)

    def run(self, code: Callable[..., Any], inputs: str, outputs: str, *args: Any) -> Any:
        """`code(*args)` on each shard separately.

        Args:
            code: the function of the shards of one device.
            inputs: the sharding of each argument, a letter each: `t`, a list of the group's tensors; `p`, a list of
                their parts, [shards, k] each; `r`, replicated over the other axes.
            outputs: the sharding of each result, in the same letters.
            args: the arguments.
        """
        if self.specs is None:
            return code(*args)
        mesh = jax.sharding.get_abstract_mesh()
        by_letter = {'t': list(self.specs), 'p': P(self.axes), 'r': P()}
        specs = lambda letters: tuple(by_letter[letter] for letter in letters)  # noqa: E731
        others = set(mesh.axis_names) - set(mesh.manual_axes)
        return jax.shard_map(code, in_specs=specs(inputs), out_specs=specs(outputs), axis_names=others)(*args)


def shard_groups(tree: Any) -> list[ShardGroup]:
    """The groups of a tree of arrays, or of shapes.

    >>> import numpy as np
    >>> [group.members for group in shard_groups({'b': np.ones(3), 'w': np.ones((2, 2))})]
    [(0, 1)]
    """
    leaves, specs = jax.tree.leaves(tree), shard_specs(tree)
    alike: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(leaves)):
        alike.setdefault(spec_axes(specs[i]) if specs else (), []).append(i)
    shape = lambda i: shard_shape(leaves[i].shape, specs[i] if specs else P())  # noqa: E731
    return [
        ShardGroup(tuple(members), tuple(map(shape, members)), tuple(specs[i] for i in members) if specs else None)
        for members in alike.values()
    ]


def local_shard(tree: Any, axis: str = collectives.AXIS) -> Any:
    """This worker's parts of a replicated tree: for each leaf [shards, k].

    >>> import numpy as np
    >>> part = lambda _: local_shard(jnp.arange(3.0), 'w')
    >>> jax.jit(jax.vmap(part, axis_name='w', axis_size=2))(np.zeros(2))
    Array([[[0., 1.]],
           [[2., 0.]]], dtype=float32)
    """
    w, index = collectives.axis_size(axis), collectives.axis_index(axis)

    def code(values: list[jax.Array], index: jax.Array) -> tuple[list[jax.Array]]:
        return ([_rows(x, w)[index][None] for x in values],)

    return _for_each_group(tree, lambda number, group, values: group.run(code, 'tr', 'p', values, index)[0])


def reduce_scatter(
    tree: Any, residual: Any, codec: Codec | None, keep: float, key: jax.Array, axis: str = collectives.AXIS
) -> tuple[Any, Any]:
    """The mean over workers of this worker's parts, for each leaf [shards, k], and the compression error.

    Args:
        tree: each worker's values.
        residual: the compression error of earlier messages, float32 in the shapes of the tree; or () without feedback.
        codec: the codec of the parts, or None for a reduce-scatter in float32.
        keep: the fraction of the residual that is added to the values.
        key: the random key of stochastic rounding.
        axis: the worker axis.

    >>> import numpy as np
    >>> mean = lambda x: reduce_scatter(x, (), None, 1.0, jax.random.key(0), 'w')[0]
    >>> jax.jit(jax.vmap(mean, axis_name='w'))(np.float32([[1, 2, 3], [3, 4, 5]]))
    Array([[[2., 3.]],
           [[4., 0.]]], dtype=float32)
    """
    w, index = collectives.axis_size(axis), collectives.axis_index(axis)
    with_residual = bool(jax.tree.leaves(residual))
    offset = jax.tree.map(lambda v, r: v + keep * r, tree, residual) if with_residual else tree

    def run(number: int, group: ShardGroup, values: list[jax.Array]) -> list[Any]:
        def code(values: Any, index: Any, key: Any) -> Any:
            rows = _padded(_joined(values, w), codec)
            if codec is None:
                return _split(collectives.reduce_scatter(rows, axis) / w, values, w), values
            keys = jax.random.split(_noise_key(key, index, group), w)
            mean, error = exchange.reduce_scatter(
                rows.astype(jnp.float32), _real(values, w, codec), codec, keys, axis, index
            )
            return tuple(exchange.keep_zeros(values, [_split(mean, values, w), _tensors(error, values)], codec, axis))

        means, errors = group.run(code, 'trr', 'pt', values, index, jax.random.fold_in(key, number))
        return [_Reduced(*pair) for pair in zip(means, errors, strict=True)]

    pairs = _for_each_group(offset, run)
    means, errors = (jax.tree.map(lambda pair, i=i: pair[i], pairs, is_leaf=_is_reduced) for i in (0, 1))
    # The residual is float32; a mean of that dtype would change the dtype of a 16-bit parameter's optimiser state.
    means = jax.tree.map(lambda mean, value: mean.astype(value.dtype), means, tree)
    return means, errors if with_residual else ()


def all_gather(parts: Any, known: Any, codec: Codec | None, key: jax.Array, axis: str = collectives.AXIS) -> Any:
    """The parts of all workers put together, replicated; through a codec, `known` plus the decoded differences from it.

    Args:
        parts: the parts that each worker stores, for each leaf [shards, k].
        known: a replicated tree in the shapes of the result, from which the differences are sent.
        codec: the codec of the differences, or None to send the parts in float32.
        key: the random key of stochastic rounding.
        axis: the worker axis.

    >>> import numpy as np
    >>> whole = lambda part: all_gather(part, jnp.zeros(3), None, jax.random.key(0), 'w')
    >>> jax.jit(jax.vmap(whole, axis_name='w', out_axes=None))(np.float32([[[2, 3]], [[4, 0]]]))
    Array([2., 3., 4.], dtype=float32)
    """
    w, index = collectives.axis_size(axis), collectives.axis_index(axis)
    treedef: Any = jax.tree.structure(known)
    pieces = treedef.flatten_up_to(parts)

    def run(number: int, group: ShardGroup, values: list[jax.Array]) -> list[jax.Array]:
        def code(parts: Any, known: Any, index: Any, key: Any) -> Any:
            local = jnp.concatenate([part.reshape(-1) for part in parts])
            if codec is None:
                return (_tensors(collectives.all_gather(_padded(local, codec), axis), known),)
            difference = _padded((local - _joined(known, w)[index]).astype(jnp.float32), codec)
            # The compression error needs no residual: `known` lacks it, so it is part of the next difference.
            real, noise = _real(known, w, codec)[index], _noise_key(key, index, group)
            decoded, _ = exchange.all_gather(difference, real, codec, noise, axis)
            moved = _split(difference, known, w)
            (differences,) = exchange.keep_zeros(moved, [_tensors(decoded, known)], codec, axis)
            return ([x + d for x, d in zip(known, differences, strict=True)],)

        local = [pieces[i] for i in group.members]
        return group.run(code, 'ptrr', 't', local, values, index, jax.random.fold_in(key, number))[0]

    return _for_each_group(known, run)


def whole_tiles(n: int) -> int:
    """The padded length, in float32, of a worker's n entries: a multiple of 128, or of 2048 from 16,384 on.

    A TPU implements a reduce-scatter or an all-gather that fills its tiles of 8 x 128, in both directions around a
    ring. For other sizes it does an all-reduce and discards most of it, which sends twice the bytes of the formula.
    Below 16,384 entries it does so in any case.

    >>> whole_tiles(100), whole_tiles(20_000)
    (128, 20480)
    """
    return padded(n, 2048 if n >= 2**14 else 128)


def bytes_sent(codec: Codec | None = None) -> Callable[[int, Any], Fraction]:
    """The formula `(workers, tree) -> bytes` that one worker sends for one `reduce_scatter` or one `all_gather`.

    It holds on a mesh of workers only.

    >>> import numpy as np
    >>> bytes_sent()(4, np.ones(4096))
    Fraction(12288, 1)
    """

    def formula(workers: int, params: Any) -> Fraction:
        groups = shard_groups(params)
        size = lambda n: codec.size(_length(n, codec)) if codec else 4 * _length(n, None)  # noqa: E731
        messages = Fraction((workers - 1) * sum(size(group.part(workers)) for group in groups))
        votes = [exchange.votes_sent(codec, workers, len(group.members)) for group in groups if codec is not None]
        return messages + sum(votes)

    return formula


def _for_each_group(tree: Any, run: Callable[[int, ShardGroup, list[jax.Array]], list[Any]]) -> Any:
    """The tree of the results of `run(number of the group, group, its leaves)`."""
    leaves, treedef = jax.tree.flatten(tree)
    out: list[Any] = [None] * len(leaves)
    for number, group in enumerate(shard_groups(tree)):
        for i, result in zip(group.members, run(number, group, [leaves[i] for i in group.members]), strict=True):
            out[i] = result
    return jax.tree.unflatten(treedef, out)


class _Reduced(NamedTuple):
    """One leaf's mean, and its compression error."""

    mean: jax.Array
    error: jax.Array


def _is_reduced(x: Any) -> bool:
    return isinstance(x, _Reduced)


def _noise_key(key: jax.Array, index: jax.Array, group: ShardGroup) -> jax.Array:
    """The random key of a message: workers and shards are rounded with independent noise."""
    worker_key = jax.random.fold_in(key, index)
    return jax.random.fold_in(worker_key, lax.axis_index(group.axes)) if group.axes else worker_key


def _rows(x: jax.Array, w: int) -> jax.Array:
    """The parts of one tensor, [W, k]."""
    k = -(-x.size // w)
    return jnp.pad(x.reshape(-1), (0, w * k - x.size)).reshape(w, k)


def _joined(values: list[jax.Array], w: int) -> jax.Array:
    """The parts of several tensors, side by side: [W, sum of k]."""
    return jnp.concatenate([_rows(x, w) for x in values], axis=1)


def _real(values: list[jax.Array], w: int, codec: Codec) -> jax.Array:
    """Which entries of `_padded(_joined(values, w), codec)` are not padding, [W, n]."""
    return _padded(_joined([jnp.ones(x.shape, bool) for x in values], w), codec)


def _padded(x: jax.Array, codec: Codec | None) -> jax.Array:
    """`x` with its last dimension padded with zeros, to whole blocks of the codec; without one, to `whole_tiles`."""
    more = _length(x.shape[-1], codec) - x.shape[-1]
    # XLA makes one pass of this and of the concatenation before it; of a `pad` it makes a second one.
    return jnp.concatenate([x, jnp.zeros((*x.shape[:-1], more), x.dtype)], axis=-1)


def _length(n: int, codec: Codec | None) -> int:
    """The padded length of n entries. Without any entry a block is sent all the same: a message needs one."""
    return padded(max(n, 1), codec.block) if codec else whole_tiles(max(n, 1))


def _split(row: jax.Array, like: list[jax.Array], w: int) -> list[jax.Array]:
    """One worker's parts of tensors like these, [1, k] each, from a row with the parts side by side."""
    out, at = [], 0
    for x in like:
        k = -(-x.size // w)
        out.append(row[at : at + k][None].astype(x.dtype))
        at += k
    return out


def _tensors(rows: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
    """Tensors like these from the parts of all workers, [W, sum of k or more]."""
    w, out, at = rows.shape[0], [], 0
    for x in like:
        k = -(-x.size // w)
        out.append(rows[:, at : at + k].reshape(-1)[: x.size].reshape(x.shape).astype(x.dtype))
        at += k
    return out
