"""Which tensors are averaged together: those of one codec that are cut over devices alike share their messages."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.codecs._exchange import ExchangeName, choose
from jaxdist.codecs.codec import AnyCodec, Codec, PerTensor, Reducer, Shape, resolve
from jaxdist.core import collectives
from jaxdist.core import mesh as meshes
from jaxdist.core.bits import flatten, unflatten
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import shard_specs

Run = Callable[..., tuple[list[jax.Array], list[jax.Array], list[Any]]]


class Group(NamedTuple):
    """Tensors that are averaged together.

    Attributes:
        codec: theirs.
        exchange: how messages travel, or None for the way that sends least.
        members: their numbers among the leaves of the tree.
        shapes: theirs, as a device holds them.
        cuts: how each is cut over the mesh's other axes; None if it has no others.
    """

    codec: Codec | Reducer
    exchange: ExchangeName | None
    members: tuple[int, ...]
    shapes: tuple[Shape, ...]
    cuts: tuple[P, ...] | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that cut them, all alike."""
        return axes_of(self.cuts[0]) if self.cuts else ()

    def start(self, keys: Sequence[jax.Array]) -> list[jax.Array | None]:
        """What is remembered of each at first: [shards, ...], or None."""
        if isinstance(self.codec, Codec):
            return [None] * len(self.members)
        shards = math.prod(_sizes()[axis] for axis in self.axes)
        first = [self.codec.start(shape, key) for shape, key in zip(self.shapes, keys, strict=True)]
        return [jnp.broadcast_to(x, (shards, *x.shape)) for x in first]

    def sends(self, workers: int) -> Fraction:
        """Bytes that one worker sends for one average, by the formulas of the codec and the exchange."""
        if isinstance(self.codec, Reducer):
            return self.codec.sends(workers, self.shapes)
        sizes: list[int] = [math.prod(shape) for shape in self.shapes]
        n = sum(sizes)
        return choose(self.exchange, self.codec, workers, n).sends(self.codec, workers, n)

    def runner(self, axis: str) -> Run:
        """`(values, remembered, me, key) -> (means, left, remembered)`, which takes each shard where it lies."""
        if self.cuts is None:
            return self._run(axis)
        mesh = jax.sharding.get_abstract_mesh()
        others = set(mesh.axis_names) - set(mesh.manual_axes)
        cuts, warm = list(self.cuts), P(self.axes) if isinstance(self.codec, Reducer) else P()
        return jax.shard_map(
            self._run(axis), in_specs=(cuts, warm, P(), P()), out_specs=(cuts, cuts, warm), axis_names=others
        )

    def _run(self, axis: str) -> Run:
        codec, axes = self.codec, self.axes

        def by_reducer(values: list[jax.Array], remembered: list[Any], me: jax.Array, key: jax.Array) -> Any:
            assert isinstance(codec, Reducer)
            means, left, after = codec.mean(values, [x[0] for x in remembered], axis)
            return means, left, [x[None] for x in after]

        def by_message(values: list[jax.Array], remembered: list[Any], me: jax.Array, key: jax.Array) -> Any:
            assert isinstance(codec, Codec)
            vector = flatten(values)
            noise = jax.random.fold_in(key, lax.axis_index(axes)) if axes else key
            exchange = choose(self.exchange, codec, collectives.axis_size(axis), vector.size)
            mean, left = exchange.mean(vector, codec, noise, axis, me)
            return unflatten(mean, values), unflatten(left, values), remembered

        return by_message if isinstance(codec, Codec) else by_reducer


def groups(tree: Any, codec: AnyCodec, exchange: ExchangeName | None = None) -> list[Group]:
    """The groups of a tree of arrays, or of shapes; tensors in none of them are averaged exactly.

    Raises:
        InputError: a leaf that is not of real numbers, or the codec does not fit the tree.

    >>> from jaxdist.codecs.int8 import int8
    >>> [group.members for group in groups({'b': jnp.ones(3), 'w': jnp.ones((2, 2))}, int8())]
    [(0, 1)]
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = meshes.path_text(path)
            raise InputError(f'{name!r} is {leaf.dtype}: through a codec go averages of real numbers')
    cuts, tensors = shard_specs(tree), _tensors(tree)
    shapes, picked = [shape for _, shape in tensors], resolve(codec, tensors)
    alike: dict[Any, list[int]] = {}
    for i, each in enumerate(picked):
        if each is not None and 0 not in shapes[i]:
            alike.setdefault((id(each), axes_of(cuts[i]) if cuts else ()), []).append(i)
    return [_group(picked, exchange, members, shapes, cuts) for members in alike.values()]


def settled(codec: AnyCodec | None, tree: Any) -> AnyCodec | None:
    """The codec with its choices for the tensors of this tree made: parts of it are then averaged as the whole would
    be.

    >>> from jaxdist.codecs.by_path import by_path
    >>> from jaxdist.codecs.int8 import int8
    >>> made = settled(by_path(rules={'w': int8()}), {'b': jnp.ones(3), 'w': jnp.ones((2, 2))})
    >>> groups({'b': jnp.ones(3), 'w': None}, made)
    []
    """
    if not isinstance(codec, PerTensor):
        return codec
    tensors = _tensors(tree)
    chosen = {path: each for (path, _), each in zip(tensors, resolve(codec, tensors), strict=True)}
    return PerTensor(lambda tensors: [chosen[path] for path, _ in tensors])


def _tensors(tree: Any) -> list[tuple[str, Shape]]:
    """The path and the shape on a device of each tensor."""
    named, cuts = jax.tree_util.tree_flatten_with_path(tree)[0], shard_specs(tree)
    return [
        (meshes.path_text(path), on_a_device(leaf.shape, cut))
        for (path, leaf), cut in zip(named, cuts or [P()] * len(named), strict=True)
    ]


def _group(
    picked: list[Any], exchange: ExchangeName | None, members: list[int], shapes: list[Shape], cuts: list[P] | None
) -> Group:
    own = tuple(cuts[i] for i in members) if cuts else None
    return Group(picked[members[0]], exchange, tuple(members), tuple(shapes[i] for i in members), own)


def axes_of(cut: P) -> tuple[str, ...]:
    """The axes that cut a tensor.

    >>> axes_of(P(None, 'model'))
    ('model',)
    """
    return tuple(sorted(axis for axis in cut if axis is not None))


def on_a_device(shape: Shape, cut: P) -> Shape:
    """The shape of a device's shard of a tensor, on the mesh that is being traced for.

    >>> on_a_device((8, 4), P())
    (8, 4)
    """
    parts = [_sizes()[axis] if axis is not None else 1 for axis in cut]
    return tuple(n // p for n, p in zip(shape, [*parts, *[1] * (len(shape) - len(parts))], strict=True))


def _sizes() -> Any:
    return jax.sharding.get_abstract_mesh().shape
