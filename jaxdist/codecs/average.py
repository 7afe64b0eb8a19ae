"""The mean over workers of a pytree, through a codec, with or without a memory of what was not sent.

The exchange is in two phases: each worker encodes and sends every other its part of the vector (all_to_all), which
decodes, takes the mean in float32, encodes that and sends it to all (all_gather): 2 (W - 1) / W messages a worker in
place of the W - 1 that everybody's sending everything would take. Error feedback is that of Seide et al. 2014 and
Karimireddy et al. 2019 (arXiv 1901.09847); the error of the second phase is kept too, by the worker that made it,
W-fold because the mean divides by W.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist import wire
from jaxdist.codecs.codec import Codec, padded


class Memory(NamedTuple):
    """What an average through a codec remembers.

    Attributes:
        residual: with feedback, what each parameter's messages left out so far, float32; else ().
        key: what random rounding draws from; () without a codec.
    """

    residual: Any
    key: Any


def remember(params: Any, codec: Codec | None, feedback: bool, seed: int, axis: str) -> Memory:
    """The memory before anything was sent: residuals of zero.

    Raises:
        ValueError: feedback without a codec: there would be nothing to feed back.

    >>> remember(jnp.ones(2), None, feedback=False, seed=0, axis='workers')
    Memory(residual=(), key=())
    """
    if codec is None and feedback:
        raise ValueError(
            'feedback=True needs a codec: an exact mean leaves nothing out, so there is nothing to feed back'
        )
    residual: Any = ()
    if feedback:
        residual = wire.per_worker(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params), axis)
    return Memory(residual, jax.random.key(seed) if codec is not None else ())


def average(tree: Any, memory: Memory, codec: Codec | None, axis: str, specs: Any = None) -> tuple[Any, Memory]:
    """The mean over workers of each leaf, shared by all, and the memory after it.

    Args:
        tree: arrays of real numbers, alike in shape on every worker.
        memory: from `remember` or the last call.
        codec: how numbers are sent, or None for an exact mean.
        axis: the worker axis.
        specs: where the mesh has other axes, how they cut each leaf: every shard is then averaged where it lies,
            because putting a tensor in one vector first would gather it over those axes.

    >>> mean_of = lambda x: average(x, Memory((), ()), None, 'workers')[0]
    >>> jax.vmap(mean_of, axis_name='workers')(jnp.arange(4.0))
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    if codec is None:
        return wire.mean(tree, axis), memory
    feedback = memory.residual != ()
    leaves = jax.tree.leaves(tree)
    residuals = jax.tree.leaves(memory.residual) if feedback else [jnp.zeros(())] * len(leaves)
    cuts = [P()] * len(leaves) if specs is None else jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P))
    key, now = jax.random.split(memory.key)
    means, rests = list(leaves), list(residuals)
    for axes, members in _groups(cuts).items():

        def group(
            values: list[jax.Array], carried: list[jax.Array], me: jax.Array, axes: tuple[str, ...] = axes
        ) -> Any:
            vector = wire.flatten(values) + (wire.flatten(carried) if feedback else 0)
            noise = jax.random.fold_in(now, lax.axis_index(axes)) if axes else now
            mean, rest = _two_phases(vector, codec, noise, axis, me)
            return wire.unflatten(mean, values), wire.unflatten(rest, values) if feedback else carried

        own = [cuts[i] for i in members]
        run = group if specs is None else _on_shards(group, own, own if feedback else P())
        got, left = run([leaves[i] for i in members], [residuals[i] for i in members], wire.index(axis))
        for i, mean, rest in zip(members, got, left, strict=True):
            means[i] = mean.astype(leaves[i].dtype)
            # What a short dtype rounds off is the same for all workers, so it belongs to each one's residual.
            rests[i] = rest + (mean - means[i].astype(jnp.float32)) if feedback else rest
    like = jax.tree.structure(tree)
    held = jax.tree.unflatten(like, rests) if feedback else ()
    return jax.tree.unflatten(like, means), Memory(held, key)


def bytes_sent(codec: Codec | None) -> Callable[[int, int], Fraction]:
    """The formula of what one worker sends for one average: `(workers, entries) -> bytes`, for float32 and no other
    axes.

    >>> bytes_sent(None)(8, 100)
    Fraction(700, 1)
    """
    if codec is None:
        return lambda w, n: Fraction(2 * (w - 1), w) * 4 * n
    return lambda w, n: Fraction(2 * (w - 1) * codec.size(padded(-(-n // w), codec.block)))


def _groups(cuts: list[P]) -> dict[tuple[str, ...], list[int]]:
    """The leaves that may share a message, by number: those cut over the same axes."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, cut in enumerate(cuts):
        axes = tuple(sorted(axis for axis in cut if axis is not None))
        groups.setdefault(axes, []).append(i)
    return groups


def _on_shards(group: Callable[..., Any], values: Any, carried: Any) -> Callable[..., Any]:
    """`group` run on every shard by itself: manual in the axes that are still the compiler's."""
    mesh = jax.sharding.get_abstract_mesh()
    others = set(mesh.axis_names) - set(mesh.manual_axes)
    return jax.shard_map(group, in_specs=(values, carried, P()), out_specs=(values, carried), axis_names=others)


def _two_phases(x: jax.Array, codec: Codec, key: jax.Array, axis: str, me: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of `x` [n] over workers, and what this worker's two messages left out of it, both [n]."""
    w = wire.size(axis)
    chunk = padded(-(-x.size // w), codec.block)
    parts = jnp.pad(x, (0, w * chunk - x.size)).reshape(w, chunk)
    # Every message is rounded by noise of its own: the same noise on two workers would not average out.
    keys = jax.random.split(jax.random.fold_in(key, me), w + 1)
    messages = jax.vmap(codec.encode)(parts, keys[:w])
    decode = jax.vmap(lambda message: codec.decode(message, chunk))
    mean = wire.sum_rows(decode(wire.exchange(messages, axis))) / w
    answer = codec.encode(mean, keys[w])
    left = parts - decode(messages)
    left = left.at[me].add(w * (mean - codec.decode(answer, chunk)))
    return decode(wire.gather(answer, axis)).reshape(-1)[: x.size], left.reshape(-1)[: x.size]
