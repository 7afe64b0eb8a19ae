"""How neighbours of a graph pull a worker towards their values, exactly or through a codec.

With weights that add up to one, mixing is `x + pull`, where the pull is the weighted sum of the differences between
what neighbours sent and what the worker itself sent: so equal values stay equal to the last bit, in any number of
rounds.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.codecs._groups import TensorGroup, group_tensors, spec_axes
from jaxdist.codecs.codec import AnyCodec, Codec, padded
from jaxdist.core import collectives
from jaxdist.core.bits import flatten, unflatten
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import leaves_sharded_as, shard_specs
from jaxdist.graphs.circulant import ring
from jaxdist.graphs.graph import Graph, Round, degree

Tensors = list[jax.Array]


def check_codec(name: str, params: Any, codec: AnyCodec | None) -> None:
    """Checks that a codec encodes messages that any neighbour can use.

    Raises:
        InputError: it brings collectives of all workers, or counts votes of all.

    >>> check_codec('gossip', {}, None)
    """
    for group in group_tensors(params, codec, None) if codec is not None else []:
        if not isinstance(group.codec, Codec):
            raise InputError(f'{name}: this codec brings its own collectives of all workers: take one such as int8()')
        if group.codec.votes:
            raise InputError(f'{name}: this codec counts votes of all workers: take one such as sign()')


def pull(
    tree: Any, rounds: Sequence[Round], turn: jax.Array, axis: str, codec: AnyCodec | None = None, seed: int = 0
) -> tuple[Any, Any]:
    """One communication round.

    Args:
        tree: this worker's values.
        rounds: those of the graph, taken in turn.
        turn: how many rounds there were before.
        axis: the worker axis.
        codec: encodes what is sent; None for the values as they are.
        seed: the seed of the codec's stochastic rounding.

    Returns:
        The pull, in float32 or wider, and what this worker sent, decoded.

    >>> swap = Round((0.5, 0.5), ((1, 0),), ((0.5, 0.5),))
    >>> jax.vmap(lambda x: pull(x, [swap], 0, 'workers')[0], axis_name='workers')(jnp.array([1.0, 3.0]))
    Array([ 1., -1.], dtype=float32)
    """
    key = jax.random.fold_in(jax.random.key(seed), turn)
    each = [lambda tree, one=one: _of_round(tree, one, axis, codec, key) for one in rounds]
    return each[0](tree) if len(each) == 1 else lax.switch(turn % len(each), each, tree)


def bytes_sent(graph: Graph | None = None, codec: AnyCodec | None = None) -> Callable[[int, Any], Fraction]:
    """The formula `(workers, tree of float32) -> bytes` that one worker sends in a round, on average over workers.

    >>> from jaxdist.graphs.circulant import ring
    >>> bytes_sent(ring())(8, jnp.ones(100))
    Fraction(800, 1)
    """

    def formula(workers: int, params: Any) -> Fraction:
        groups = group_tensors(params, codec, None) if codec is not None else []
        encoded = {i for group in groups for i in group.members}
        size = sum(4 * leaf.size for i, leaf in enumerate(jax.tree.leaves(params)) if i not in encoded)
        for group in groups:
            assert isinstance(group.codec, Codec)
            size += group.codec.size(padded(sum(map(math.prod, group.shapes)), group.codec.block))
        return Fraction(degree((graph or ring()).rounds(workers))).limit_denominator(10**6) * size

    return formula


def _of_round(tree: Any, each: Round, axis: str, codec: AnyCodec | None, key: jax.Array) -> tuple[Any, Any]:
    leaves, treedef = jax.tree.flatten(tree)
    groups = group_tensors(tree, codec, None) if codec is not None else []
    encoded = {i for group in groups for i in group.members}
    exact = [i for i in range(len(leaves)) if i not in encoded]
    pulls, sent = [*leaves], [*leaves]
    with leaves_sharded_as(exact):
        specs = shard_specs([leaves[i] for i in exact])
        run = _on_shards(lambda values, index, _: _exact(values, each, axis, index), specs)
        results = run([leaves[i] for i in exact], collectives.axis_index(axis), key)
    _put(results, exact, pulls, sent)
    for number, group in enumerate(groups):
        code = lambda values, index, key, group=group: _coded(values, each, axis, index, group, key)  # noqa: E731
        run = _on_shards(code, list(group.specs) if group.specs else None)
        values = [leaves[i].astype(jnp.float32) for i in group.members]
        results = run(values, collectives.axis_index(axis), jax.random.fold_in(key, number))
        _put(results, group.members, pulls, sent)
    varying = lambda tensors: collectives.pvary(jax.tree.unflatten(treedef, tensors), axis)  # noqa: E731
    return varying(pulls), varying(sent)


def _put(results: tuple[Tensors, Tensors], members: Sequence[int], pulls: Tensors, sent: Tensors) -> None:
    for i, each, own in zip(members, *results, strict=True):
        pulls[i], sent[i] = each, own


def _on_shards(run: Callable[..., tuple[Tensors, Tensors]], specs: Any) -> Callable[..., tuple[Tensors, Tensors]]:
    """`run(values, index, key)` on the shards of each device, where the mesh has other axes that shard them."""
    if not specs or not any(map(spec_axes, specs)):
        return run
    mesh = jax.sharding.get_abstract_mesh()
    others = set(mesh.axis_names) - set(mesh.manual_axes)
    return jax.shard_map(run, in_specs=(specs, jax.P(), jax.P()), out_specs=(specs, specs), axis_names=others)


def _exact(values: Tensors, each: Round, axis: str, index: jax.Array) -> tuple[Tensors, Tensors]:
    pulls = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in values]
    for sources, weights in zip(each.sources, each.weights, strict=True):
        heard = [collectives.permute(x, sources, axis) for x in values]
        # Nobody's value arrives as zeros, with the weight 0.
        each_weight = [jnp.asarray(weights, p.real.dtype)[index] for p in pulls]
        pulls = [p + w * (h.astype(p.dtype) - x) for p, w, h, x in zip(pulls, each_weight, heard, values, strict=True)]
    return pulls, values


def _coded(
    values: Tensors, each: Round, axis: str, index: jax.Array, group: TensorGroup, key: jax.Array
) -> tuple[Tensors, Tensors]:
    """One message of all tensors of a group."""
    codec = group.codec
    assert isinstance(codec, Codec)
    vector = flatten(values)
    size = padded(vector.size, codec.block)
    whole = lambda x: jnp.pad(x, (0, size - vector.size))  # noqa: E731
    noise = jax.random.fold_in(key, lax.axis_index(group.axes)) if group.axes else key
    message = codec.message(whole(vector), whole(jnp.ones(vector.shape, bool)), jax.random.fold_in(noise, index))
    own = codec.decode(message, size)
    pulls = jnp.zeros_like(own)
    for sources, weights in zip(each.sources, each.weights, strict=True):
        weight = jnp.asarray(weights, jnp.float32)[index]
        heard = codec.decode(collectives.permute(message, sources, axis), size)
        pulls += jnp.where(weight > 0, weight * (heard - own), 0)  # nobody's message may be decoded as anything
    return unflatten(pulls[: vector.size], values), unflatten(own[: vector.size], values)
