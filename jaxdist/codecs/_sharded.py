"""Tensors of which each worker owns a part: parts are pushed to their owners, and pulled from them.

Part j of a tensor of n entries are those from j k on, k = ceil(n / W) of them, the last ones padded with zeros. Where
the mesh has other axes, that is so of each shard, where it lies. Tensors that are cut alike over those share their
messages.
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
from jaxdist.codecs._groups import axes_of, on_a_device
from jaxdist.codecs.codec import Codec, Shape, padded
from jaxdist.core import collectives
from jaxdist.core.protocol import shard_specs


class ShardGroup(NamedTuple):
    """Tensors whose parts travel together.

    Attributes:
        members: their numbers among the leaves of the tree.
        shapes: theirs, as a device holds them.
        cuts: how each is cut over the mesh's other axes; None if it has no others.
    """

    members: tuple[int, ...]
    shapes: tuple[Shape, ...]
    cuts: tuple[P, ...] | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that cut them, all alike."""
        return axes_of(self.cuts[0]) if self.cuts else ()

    def part(self, workers: int) -> int:
        """How many entries a worker owns."""
        return sum(-(-math.prod(shape) // workers) for shape in self.shapes)

    def run(self, code: Callable[..., Any], given: str, out: str, *args: Any) -> Any:
        """`code(*args)` where each shard lies. Of each argument and result a letter says what it is: `t`, a list of the
        tensors; `p`, of their parts, [shards, k] each; `r`, one thing that is everywhere the same.
        """
        if self.cuts is None:
            return code(*args)
        mesh = jax.sharding.get_abstract_mesh()
        specs = {'t': list(self.cuts), 'p': P(self.axes), 'r': P()}
        one = lambda letters: tuple(specs[letter] for letter in letters)  # noqa: E731
        others = set(mesh.axis_names) - set(mesh.manual_axes)
        return jax.shard_map(code, in_specs=one(given), out_specs=one(out), axis_names=others)(*args)


def shard_groups(tree: Any) -> list[ShardGroup]:
    """What travels together of a tree of arrays, or of shapes.

    >>> [share.members for share in shard_groups({'b': jnp.ones(3), 'w': jnp.ones((2, 2))})]
    [(0, 1)]
    """
    leaves, cuts = jax.tree.leaves(tree), shard_specs(tree)
    alike: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(leaves)):
        alike.setdefault(axes_of(cuts[i]) if cuts else (), []).append(i)
    shape = lambda i: on_a_device(leaves[i].shape, cuts[i] if cuts else P())  # noqa: E731
    return [
        ShardGroup(tuple(members), tuple(map(shape, members)), tuple(cuts[i] for i in members) if cuts else None)
        for members in alike.values()
    ]


def local_shard(tree: Any, axis: str = collectives.AXIS) -> Any:
    """This worker's parts of a tree that all share: for each leaf [shards, k].

    >>> jax.vmap(lambda _: local_shard(jnp.arange(3.0), 'w'), axis_name='w')(jnp.zeros(2))
    Array([[[0., 1.]],
           [[2., 0.]]], dtype=float32)
    """
    w, me = collectives.axis_size(axis), collectives.axis_index(axis)

    def code(values: list[jax.Array], me: jax.Array) -> tuple[list[jax.Array]]:
        return ([_rows(x, w)[me][None] for x in values],)

    return _over(tree, lambda number, share, values: share.run(code, 'tr', 'p', values, me)[0])


def reduce_scatter(
    tree: Any, residual: Any, codec: Codec | None, keep: float, key: jax.Array, axis: str = collectives.AXIS
) -> tuple[Any, Any]:
    """To each owner the mean over workers of its parts: for each leaf [shards, k]; and what messages left out.

    Args:
        tree: each worker's own values.
        residual: what earlier messages left out, in the shape of the tree, float32; or ().
        codec: how parts are sent, or None for a reduce-scatter of float32.
        keep: which part of the residual is added to the values.
        key: of the codec's random rounding.
        axis: the worker axis.

    >>> mean = lambda x: reduce_scatter(x, (), None, 1.0, jax.random.key(0), 'w')[0]
    >>> jax.vmap(mean, axis_name='w')(jnp.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))
    Array([[[2., 3.]],
           [[4., 0.]]], dtype=float32)
    """
    w, me = collectives.axis_size(axis), collectives.axis_index(axis)
    with_residual = bool(jax.tree.leaves(residual))
    offset = jax.tree.map(lambda v, h: v + keep * h, tree, residual) if with_residual else tree

    def run(number: int, share: ShardGroup, values: list[jax.Array]) -> list[Any]:
        def code(values: Any, me: Any, key: Any) -> Any:
            rows = _filled(_joined(values, w), codec)
            if codec is None:
                return _split(collectives.reduce_scatter(rows, axis) / w, values, w), values
            keys = jax.random.split(_noise(key, me, share), w)
            mean, left = exchange.push(rows.astype(jnp.float32), codec, keys, axis, me)
            return _split(mean, values, w), _whole(left, values)

        means, left = share.run(code, 'trr', 'pt', values, me, jax.random.fold_in(key, number))
        return [_Pushed(*pair) for pair in zip(means, left, strict=True)]

    pairs = _over(offset, run)
    first, second = (jax.tree.map(lambda pair, i=i: pair[i], pairs, is_leaf=_is_pushed) for i in (0, 1))
    return first, second if with_residual else ()


def all_gather(parts: Any, known: Any, codec: Codec | None, key: jax.Array, axis: str = collectives.AXIS) -> Any:
    """Everybody's parts put together, shared by all; through a codec, what all know moved towards that.

    Args:
        parts: what each worker owns, for each leaf [shards, k].
        known: what all know of the tree, which gives the shapes.
        codec: how the differences from `known` are sent, or None for parts as they are, in float32.
        key: of the codec's random rounding.
        axis: the worker axis.

    >>> whole = lambda part: all_gather(part, jnp.zeros(3), None, jax.random.key(0), 'w')
    >>> jax.vmap(whole, axis_name='w', out_axes=None)(jnp.array([[[2.0, 3.0]], [[4.0, 0.0]]]))
    Array([2., 3., 4.], dtype=float32)
    """
    w, me = collectives.axis_size(axis), collectives.axis_index(axis)
    like: Any = jax.tree.structure(known)
    pieces = like.flatten_up_to(parts)

    def run(number: int, share: ShardGroup, values: list[jax.Array]) -> list[jax.Array]:
        def code(parts: Any, known: Any, me: Any, key: Any) -> Any:
            mine = jnp.concatenate([part.reshape(-1) for part in parts])
            if codec is None:
                return (_whole(collectives.all_gather(_filled(mine, codec), axis), known),)
            behind = _filled((mine - _joined(known, w)[me]).astype(jnp.float32), codec)
            told, _ = exchange.pull(behind, codec, _noise(key, me, share), axis)
            return ([x + d for x, d in zip(known, _whole(told, known), strict=True)],)

        mine = [pieces[i] for i in share.members]
        return share.run(code, 'ptrr', 't', mine, values, me, jax.random.fold_in(key, number))[0]

    return _over(known, run)


def whole_tiles(n: int) -> int:
    """How many entries stand for n of a worker's in float32: a multiple of 128, and of 2048 where that adds little.

    A TPU scatters and gathers what fills its tiles of 8 x 128, both ways around a ring; of other sizes, it would reduce
    all to all and throw most of it away, and send twice as many bytes as the formula says. So it does below 16,384.

    >>> whole_tiles(100), whole_tiles(20_000)
    (128, 20480)
    """
    return padded(n, 2048 if n >= 2**14 else 128)


def bytes_sent(codec: Codec | None = None) -> Callable[[int, Any], Fraction]:
    """The formula of what one worker sends to push or to pull a tree: `(workers, tree) -> bytes`. For no other axes.

    >>> bytes_sent()(4, jnp.ones(4096))
    Fraction(12288, 1)
    """

    def formula(workers: int, params: Any) -> Fraction:
        parts = [share.part(workers) for share in shard_groups(params)]
        one = lambda n: 4 * whole_tiles(n) if codec is None else codec.size(padded(n, codec.block))  # noqa: E731
        return Fraction((workers - 1) * sum(one(n) for n in parts))

    return formula


def _over(tree: Any, run: Callable[[int, ShardGroup, list[jax.Array]], list[Any]]) -> Any:
    """The tree that `run` makes of the leaves of each share, which are numbered."""
    leaves, like = jax.tree.flatten(tree)
    out: list[Any] = [None] * len(leaves)
    for number, share in enumerate(shard_groups(tree)):
        for i, made in zip(share.members, run(number, share, [leaves[i] for i in share.members]), strict=True):
            out[i] = made
    return jax.tree.unflatten(like, out)


class _Pushed(NamedTuple):
    mean: jax.Array
    left: jax.Array


def _is_pushed(x: Any) -> bool:
    return isinstance(x, _Pushed)


def _noise(key: jax.Array, me: jax.Array, share: ShardGroup) -> jax.Array:
    """What a message draws from: each worker's, and each shard's, are rounded by noise of their own."""
    own = jax.random.fold_in(key, me)
    return jax.random.fold_in(own, lax.axis_index(share.axes)) if share.axes else own


def _rows(x: jax.Array, w: int) -> jax.Array:
    """The parts of one tensor, [W, k]."""
    k = -(-x.size // w)
    return jnp.pad(x.reshape(-1), (0, w * k - x.size)).reshape(w, k)


def _joined(values: list[jax.Array], w: int) -> jax.Array:
    """The parts of several tensors, side by side: [W, sum of k]."""
    return jnp.concatenate([_rows(x, w) for x in values], axis=1)


def _filled(x: jax.Array, codec: Codec | None) -> jax.Array:
    """Zeros at the end of the last dim, to whole blocks of the codec; without one, to `whole_tiles`."""
    n = x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, (padded(n, codec.block) if codec else whole_tiles(n)) - n)])


def _split(row: jax.Array, like: list[jax.Array], w: int) -> list[jax.Array]:
    """One owner's parts of tensors like these, [1, k] each, from what was side by side."""
    out, at = [], 0
    for x in like:
        k = -(-x.size // w)
        out.append(row[at : at + k][None].astype(x.dtype))
        at += k
    return out


def _whole(rows: jax.Array, like: list[jax.Array]) -> list[jax.Array]:
    """Tensors like these from the parts of all owners, [W, sum of k or more]."""
    w, out, at = rows.shape[0], [], 0
    for x in like:
        k = -(-x.size // w)
        out.append(rows[:, at : at + k].reshape(-1)[: x.size].reshape(x.shape).astype(x.dtype))
        at += k
    return out
