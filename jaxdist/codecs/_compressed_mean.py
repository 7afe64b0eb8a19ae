"""The mean over workers of a pytree, through codecs, with or without a memory of what was not sent.

Two memories: error feedback adds what a message left out to the next one (EF14, Seide et al. 2014; Karimireddy et al.
2019, arXiv 1901.09847), all of it or, where it forgets, a part (Sarfi et al. 2025, arXiv 2508.15706); EF21 sends how
far a worker's value has moved from what the others know of it (Richtarik et al. 2021, arXiv 2106.05203). How messages
travel is in `exchange.py`, which tensors share them in `groups.py`.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs._groups import groups
from jaxdist.codecs.codec import AnyCodec, Codec
from jaxdist.core import collectives
from jaxdist.core.errors import InputError

Feedback = bool | float | Literal['ef21']
"""No memory (False), error feedback (True; a number between 0 and 1 is the part that is kept), or EF21."""


class Channel(NamedTuple):
    """How the mean over workers is computed: the arguments that all algorithms with a mean share.

    Attributes:
        axis: the worker axis.
        codec: how arrays are encoded; None for float32.
        feedback: error feedback: False; True; a number between 0 and 1, the part of the residual that is kept; 'ef21'.
        exchange: how messages travel: 'two_phases', 'gather', 'all_reduce'; None for the one that sends least.
        seed: of the codec's random rounding.
    """

    axis: str = collectives.AXIS
    codec: AnyCodec | None = None
    feedback: Feedback = False
    exchange: ExchangeName | None = None
    seed: int = 0


class CompressionState(NamedTuple):
    """What an average through a codec remembers; () for what it needs not. Tensors averaged exactly have None.

    Attributes:
        residual: each worker's own, float32 in the shape of the parameters. With error feedback, what its messages
            left out so far; with EF21, what the others know of its value.
        estimate: with EF21, the mean of what is known of all, which all share.
        warm: what a codec remembers of a tensor from mean to mean, [shards, ...]; which all workers share.
        key: what random rounding draws from.
    """

    residual: Any
    estimate: Any
    warm: Any
    key: Any


def init(params: Any, channel: Channel) -> CompressionState:
    """The memory before anything was sent: residuals of zero.

    Raises:
        InputError: feedback or an exchange without a codec, which would have nothing to do, or a codec that feedback
            does not go with.

    >>> init(jnp.ones(2), Channel())
    CompressionState(residual=(), estimate=(), warm=(), key=())
    """
    feedback = channel.feedback
    if feedback not in (False, True, 'ef21') and not _is_part(feedback):
        raise InputError(
            f"feedback={feedback!r} must be False, True, 'ef21', or the part that is kept, a number between 0 and 1"
        )
    if channel.codec is None:
        if feedback:
            raise InputError(
                f'feedback={feedback!r} needs a codec: an exact mean leaves nothing out, so nothing is fed back'
            )
        if channel.exchange is not None:
            raise InputError(f'exchange={channel.exchange!r} needs a codec: an exact mean is one all-reduce')
        return CompressionState((), (), (), ())
    leaves, like = jax.tree.flatten(params)
    zeros: list[Any] = [None] * len(leaves)
    warm: list[Any] = [None] * len(leaves)
    key = jax.random.key(channel.seed)
    sent = groups(params, channel.codec, channel.exchange)
    if channel.exchange is not None and sent and not any(isinstance(group.codec, Codec) for group in sent):
        raise InputError(
            f'exchange={channel.exchange!r} is for messages of bytes, and this codec has an exchange of its own'
        )
    for group in sent:
        if feedback and isinstance(group.codec, Codec) and not group.codec.contracts:
            raise InputError(
                f"feedback={feedback!r} needs a codec whose error is smaller than what it is given; this one's can be "
                'larger, and what is fed back would grow without end'
            )
        first = group.start([jax.random.fold_in(key, i) for i in group.members])
        for i, remembered in zip(group.members, first, strict=True):
            zeros[i], warm[i] = jnp.zeros(leaves[i].shape, jnp.float32), remembered
    residual = collectives.pvary(jax.tree.unflatten(like, zeros), channel.axis) if feedback else ()
    estimate = jax.tree.unflatten(like, zeros) if feedback == 'ef21' else ()
    return CompressionState(residual, estimate, jax.tree.unflatten(like, warm) if jax.tree.leaves(warm) else (), key)


def mean(tree: Any, memory: CompressionState, channel: Channel) -> tuple[Any, CompressionState]:
    """The mean over workers of each leaf, shared by all, and the memory after it.

    Where the mesh has other axes, every shard is averaged where it lies (see `jaxdist.core.protocol.sharded_as`): putting a tensor
    in one vector first would gather it over those axes.

    Args:
        tree: arrays of real numbers, alike in shape on every worker.
        memory: from `init` or the last call.
        channel: how they are sent.

    >>> mean_of = lambda x: mean(x, CompressionState((), (), (), ()), Channel())[0]
    >>> jax.vmap(mean_of, axis_name='workers')(jnp.arange(4.0))
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    axis, feedback = channel.axis, channel.feedback
    if channel.codec is None:
        return collectives.pmean(tree, axis), memory
    leaves, like = jax.tree.flatten(tree)
    residual, estimate, warm = (_parts(part, like) for part in memory[:3])
    key, now = jax.random.split(memory.key)
    sent = groups(tree, channel.codec, channel.exchange)
    means = _exact(leaves, {i for group in sent for i in group.members}, axis)
    for number, group in enumerate(sent):
        values = [_offset(leaves[i].astype(jnp.float32), residual[i], feedback) for i in group.members]
        known, draw = [warm[i] for i in group.members], jax.random.fold_in(now, number)
        got, left, learnt = group.runner(axis)(values, known, collectives.axis_index(axis), draw)
        for i, mean, rest, remembered in zip(group.members, got, left, learnt, strict=True):
            warm[i] = remembered
            if feedback == 'ef21':
                mean = estimate[i] = estimate[i] + mean
            means[i] = mean.astype(leaves[i].dtype)
            if feedback == 'ef21':
                residual[i] = leaves[i].astype(jnp.float32) - rest
            elif feedback:
                # What a short dtype rounds off is the same for all workers, so it belongs to each one's residual.
                residual[i] = rest + (mean - means[i].astype(jnp.float32))
    whole = lambda old, new: () if _absent(old) else jax.tree.unflatten(like, new)  # noqa: E731
    after = CompressionState(
        whole(memory.residual, residual), whole(memory.estimate, estimate), whole(memory.warm, warm), key
    )
    return jax.tree.unflatten(like, [means[i] for i in range(len(leaves))]), after


def bytes_sent(codec: AnyCodec | None = None, exchange: ExchangeName | None = None) -> Callable[[int, Any], Fraction]:
    """The formula of what one worker sends for one average: `(workers, tree of float32) -> bytes`. For no other axes.

    >>> bytes_sent()(8, jnp.ones(100))
    Fraction(700, 1)
    """

    def formula(workers: int, params: Any) -> Fraction:
        sent = groups(params, codec, exchange) if codec is not None else []
        coded = {i for group in sent for i in group.members}
        exact = sum(leaf.size for i, leaf in enumerate(jax.tree.leaves(params)) if i not in coded)
        return Fraction(2 * (workers - 1), workers) * 4 * exact + sum(group.sends(workers) for group in sent)

    return formula


def _exact(leaves: list[Any], coded: set[int], axis: str) -> dict[int, Any]:
    """The exact means of the tensors that no codec is for, by number."""
    rest = [i for i in range(len(leaves)) if i not in coded]
    return dict(zip(rest, collectives.pmean([leaves[i] for i in rest], axis), strict=True))


def _offset(value: jax.Array, residual: jax.Array | None, feedback: Feedback) -> jax.Array:
    """What is sent of a value."""
    if residual is None:
        return value
    if feedback == 'ef21':
        return value - residual
    return value + (feedback * residual if _is_part(feedback) else residual)


def _is_part(feedback: Feedback) -> TypeGuard[float]:
    return isinstance(feedback, float) and 0 < feedback < 1


def _absent(part: Any) -> bool:
    return isinstance(part, tuple) and not part


def _parts(part: Any, like: Any) -> list[Any]:
    """For each leaf what a memory holds of it, or None."""
    return [None] * like.num_leaves if _absent(part) else like.flatten_up_to(part)
