"""Which tensors are averaged together: those with one codec and one sharding share their messages."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist.codecs._exchange import ExchangeName, choose, keep_zeros, votes_sent
from jaxdist.codecs.codec import AnyCodec, Codec, PerTensor, Reducer, Shape, resolve
from jaxdist.core import collectives
from jaxdist.core import mesh as meshes
from jaxdist.core.bits import flatten, unflatten
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import shard_specs

Run = Callable[..., tuple[list[jax.Array], list[jax.Array], list[Any]]]


class TensorGroup(NamedTuple):
    """Tensors that are averaged together.

    Attributes:
        codec: the codec of all of them.
        exchange: the name of the exchange, or None for the one that sends the fewest bytes.
        members: the tensors' indices among the leaves of the tree.
        shapes: the shape of each tensor's shard on one device.
        specs: a `PartitionSpec` for each tensor, over the mesh's other axes; None if it has no others.
    """

    codec: Codec | Reducer
    exchange: ExchangeName | None
    members: tuple[int, ...]
    shapes: tuple[Shape, ...]
    specs: tuple[P, ...] | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the tensors are sharded, the same for all."""
        return spec_axes(self.specs[0]) if self.specs else ()

    def start(self, keys: Sequence[jax.Array]) -> list[jax.Array | None]:
        """The codec's initial state for each tensor, [shards, ...]; None for a codec without state."""
        if isinstance(self.codec, Codec):
            return [None] * len(self.members)
        shards = math.prod(_axis_sizes()[axis] for axis in self.axes)
        first = [self.codec.start(shape, key) for shape, key in zip(self.shapes, keys, strict=True)]
        return [jnp.broadcast_to(x, (shards, *x.shape)) for x in first]

    def sends(self, workers: int) -> Fraction:
        """Bytes that one worker sends for one mean, by the formulas of the codec and the exchange."""
        if isinstance(self.codec, Reducer):
            return self.codec.sends(workers, self.shapes)
        sizes: list[int] = [math.prod(shape) for shape in self.shapes]
        n = sum(sizes)
        messages = choose(self.exchange, self.codec, workers, n).sends(self.codec, workers, n)
        return messages + votes_sent(self.codec, workers, len(self.members))

    def runner(self, axis: str) -> Run:
        """`(values, states, index, key) -> (means, errors, states)`, on each shard separately.

        `states` are the codec's states, and `index` is the worker's index.
        """
        if self.specs is None:
            return self._run(axis)
        mesh = jax.sharding.get_abstract_mesh()
        others = set(mesh.axis_names) - set(mesh.manual_axes)
        specs, warm = list(self.specs), P(self.axes) if isinstance(self.codec, Reducer) else P()
        return jax.shard_map(
            self._run(axis), in_specs=(specs, warm, P(), P()), out_specs=(specs, specs, warm), axis_names=others
        )

    def _run(self, axis: str) -> Run:
        """`runner` for the shards of one device."""
        codec, axes = self.codec, self.axes

        def by_reducer(values: list[jax.Array], states: list[Any], index: jax.Array, key: jax.Array) -> Any:
            assert isinstance(codec, Reducer)
            means, errors, after = codec.mean(values, [x[0] for x in states], axis)
            return means, errors, [x[None] for x in after]

        def by_message(values: list[jax.Array], states: list[Any], index: jax.Array, key: jax.Array) -> Any:
            assert isinstance(codec, Codec)
            vector = flatten(values)
            # Shards are rounded with independent noise; the worker's index is folded in by the exchange.
            noise = jax.random.fold_in(key, lax.axis_index(axes)) if axes else key
            exchange = choose(self.exchange, codec, collectives.axis_size(axis), vector.size)
            mean, error = exchange.mean(vector, codec, noise, axis, index)
            means, errors = keep_zeros(values, [unflatten(mean, values), unflatten(error, values)], codec, axis)
            return means, errors, states

        return by_message if isinstance(codec, Codec) else by_reducer


def group_tensors(tree: Any, codec: AnyCodec, exchange: ExchangeName | None = None) -> list[TensorGroup]:
    """The groups of a tree of arrays, or of shapes; tensors in no group are averaged exactly.

    Args:
        tree: arrays, or `jax.ShapeDtypeStruct`s.
        codec: the codec given to the algorithm.
        exchange: the name of the exchange, or None for the one that sends the fewest bytes.

    Raises:
        InputError: a leaf with a codec is not of a floating-point dtype, or the codec does not fit the tree.

    >>> import numpy as np
    >>> from jaxdist.codecs.int8 import int8
    >>> [group.members for group in group_tensors({'b': np.ones(3), 'w': np.ones((2, 2))}, int8())]
    [(0, 1)]
    """
    specs, tensors = shard_specs(tree), _tensors(tree)
    shapes, codecs = [shape for _, shape in tensors], resolve(codec, tensors)
    for leaf, (path, _), leaf_codec in zip(jax.tree.leaves(tree), tensors, codecs, strict=True):
        if leaf_codec is not None and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f'{path!r} is {leaf.dtype}: a codec takes means of floating-point numbers only. Average it exactly, as '
                f'by_path(rules={{{path!r}: None}}, rest=...) does, or store complex numbers as two real parameters'
            )
    alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for i, leaf_codec in enumerate(codecs):
        if leaf_codec is not None and 0 not in shapes[i]:  # an empty tensor has nothing to send
            alike.setdefault((id(leaf_codec), spec_axes(specs[i]) if specs else ()), []).append(i)
    return [_group(codecs, exchange, members, shapes, specs) for members in alike.values()]


def resolve_for(codec: AnyCodec | None, tree: Any) -> AnyCodec | None:
    """The codec with its choice for each tensor of this tree fixed, so that a subtree is averaged as in the whole tree.

    >>> import numpy as np
    >>> from jaxdist.codecs.by_path import by_path
    >>> from jaxdist.codecs.int8 import int8
    >>> resolved = resolve_for(by_path(rules={'w': int8()}), {'b': np.ones(3), 'w': np.ones((2, 2))})
    >>> group_tensors({'b': np.ones(3), 'w': None}, resolved)
    []
    """
    if not isinstance(codec, PerTensor):
        return codec
    tensors = _tensors(tree)
    chosen = {path: each for (path, _), each in zip(tensors, resolve(codec, tensors), strict=True)}
    return PerTensor(lambda tensors: [chosen[path] for path, _ in tensors])


def _tensors(tree: Any) -> list[tuple[str, Shape]]:
    """The path of each tensor, and the shape of its shard on one device."""
    leaves, specs = jax.tree_util.tree_flatten_with_path(tree)[0], shard_specs(tree)
    return [
        (meshes.path_text(path), shard_shape(leaf.shape, spec))
        for (path, leaf), spec in zip(leaves, specs or [P()] * len(leaves), strict=True)
    ]


def _group(
    codecs: Sequence[Any],
    exchange: ExchangeName | None,
    members: list[int],
    shapes: list[Shape],
    specs: list[P] | None,
) -> TensorGroup:
    member_specs = tuple(specs[i] for i in members) if specs else None
    return TensorGroup(codecs[members[0]], exchange, tuple(members), tuple(shapes[i] for i in members), member_specs)


def spec_axes(spec: P) -> tuple[str, ...]:
    """The mesh axes over which a tensor is sharded, sorted.

    >>> spec_axes(P(None, 'model'))
    ('model',)
    """
    return tuple(sorted(axis for axis in spec if axis is not None))


def shard_shape(shape: Shape, spec: P) -> Shape:
    """The shape of a tensor's shard on one device, on the mesh of the current trace.

    >>> shard_shape((8, 4), P())
    (8, 4)
    """
    parts = [_axis_sizes()[axis] if axis is not None else 1 for axis in spec]
    return tuple(n // p for n, p in zip(shape, [*parts, *[1] * (len(shape) - len(parts))], strict=True))


def _axis_sizes() -> Mapping[str, int]:
    return jax.sharding.get_abstract_mesh().shape
