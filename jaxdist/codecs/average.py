"""The mean over workers of a pytree, through a codec, with or without a memory of what was not sent.

Error feedback is that of Seide et al. 2014 and Karimireddy et al. 2019 (arXiv 1901.09847): what a message left out is
added to the next one. How messages travel is in `exchange.py`.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist import wire
from jaxdist.codecs.codec import Codec
from jaxdist.codecs.exchange import ExchangeName, choose


class Channel(NamedTuple):
    """How averages are sent.

    Attributes:
        axis: the worker axis.
        codec: how a vector becomes a message, or None for float32 as it is.
        feedback: whether what a message leaves out is added to the next one.
        exchange: how messages travel, see `exchange.py`; None for the way that sends least.
        seed: of the codec's random rounding.
    """

    axis: str = wire.AXIS
    codec: Codec | None = None
    feedback: bool = False
    exchange: ExchangeName | None = None
    seed: int = 0


class Memory(NamedTuple):
    """What an average through a codec remembers.

    Attributes:
        residual: with feedback, what each parameter's messages left out so far, float32; else ().
        key: what random rounding draws from; () without a codec.
    """

    residual: Any
    key: Any


def remember(params: Any, channel: Channel) -> Memory:
    """The memory before anything was sent: residuals of zero.

    Raises:
        ValueError: feedback or an exchange without a codec, which would have nothing to do.

    >>> remember(jnp.ones(2), Channel())
    Memory(residual=(), key=())
    """
    if channel.codec is None:
        if channel.feedback:
            raise ValueError(
                'feedback=True needs a codec: an exact mean leaves nothing out, so there is nothing to feed back'
            )
        if channel.exchange is not None:
            raise ValueError(f'exchange={channel.exchange!r} needs a codec: an exact mean is one all-reduce')
        return Memory((), ())
    residual: Any = ()
    if channel.feedback:
        residual = wire.per_worker(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params), channel.axis)
    return Memory(residual, jax.random.key(channel.seed))


def average(tree: Any, memory: Memory, channel: Channel, specs: Any = None) -> tuple[Any, Memory]:
    """The mean over workers of each leaf, shared by all, and the memory after it.

    Args:
        tree: arrays of real numbers, alike in shape on every worker.
        memory: from `remember` or the last call.
        channel: how they are sent.
        specs: where the mesh has other axes, how they cut each leaf: every shard is then averaged where it lies,
            because putting a tensor in one vector first would gather it over those axes.

    >>> mean_of = lambda x: average(x, Memory((), ()), Channel())[0]
    >>> jax.vmap(mean_of, axis_name='workers')(jnp.arange(4.0))
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    codec, axis, feedback = channel.codec, channel.axis, channel.feedback
    if codec is None:
        return wire.mean(tree, axis), memory
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
            exchange = choose(channel.exchange, codec, wire.size(axis), vector.size)
            mean, rest = exchange.mean(vector, codec, noise, axis, me)
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


def bytes_sent(codec: Codec | None = None, exchange: ExchangeName | None = None) -> Callable[[int, int], Fraction]:
    """The formula of what one worker sends for one average: `(workers, entries) -> bytes`. For float32, and no other
    axes.

    >>> bytes_sent()(8, 100)
    Fraction(700, 1)
    """
    if codec is None:
        return lambda w, n: Fraction(2 * (w - 1), w) * 4 * n
    return lambda w, n: choose(exchange, codec, w, n).sends(codec, w, n)


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
