"""The mean over workers of a pytree, exact or compressed by a codec, with or without error feedback.

Error feedback adds the compression error of a message to the next one (EF14, Seide et al. 2014; Karimireddy et al.
2019, arXiv 1901.09847), or a fraction of it (Sarfi et al. 2025, arXiv 2508.15706). EF21 sends the difference between a
worker's value and its estimate, the sum of earlier decoded messages (Richtarik et al. 2021, arXiv 2106.05203).
The collectives are in `_exchange.py`; `_groups.py` groups the tensors that share messages.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import optax

from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs._groups import group_tensors, spec_axes
from jaxdist.codecs.codec import AnyCodec, Codec
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import leaves_sharded_as, shard_specs
from jaxdist.core.types import Params

Feedback = bool | float | Literal['ef21']
"""No feedback (False), error feedback (True, or the fraction of the residual that is kept, in (0, 1)), or EF21."""


class Channel(NamedTuple):
    """How the mean over workers is computed: arguments that all algorithms with a mean have in common.

    Attributes:
        axis: the worker axis.
        codec: the codec of the messages; None for an exact mean in float32.
        feedback: the error feedback: False; True; the fraction of the residual that is kept, in (0, 1); 'ef21'.
        exchange: how messages travel: 'two_phases', 'gather', 'all_reduce'; None for the one that sends least.
        seed: the seed of the codec's stochastic rounding.
    """

    axis: str = collectives.AXIS
    codec: AnyCodec | None = None
    feedback: Feedback = False
    exchange: ExchangeName | None = None
    seed: int = 0


class CompressionState(NamedTuple):
    """The state of a compressed mean. A field without use is (); within a field, a tensor averaged exactly has None.

    Attributes:
        residual: one per worker, float32 in the shape of the parameters. With error feedback, the compression error to
            add to the next message; with EF21, the estimate of this worker's value, the sum of its decoded messages.
        estimate: with EF21, the mean over workers of these estimates, replicated.
        warm: the codec's state for each tensor, [shards, ...], replicated, such as the factor of PowerSGD's warm start.
        key: the random key of stochastic rounding, replicated.
    """

    residual: optax.Updates
    estimate: optax.Updates
    warm: optax.Updates
    key: Any


def init(params: Params, channel: Channel) -> CompressionState:
    """The compression state before the first mean: residuals are zero.

    Args:
        params: the parameters, in whose shapes values are averaged.
        channel: how the mean is computed.

    Raises:
        InputError: feedback or an exchange is given without a codec, there is no such feedback, or the codec does not
            go with the feedback or the exchange.

    >>> import numpy as np
    >>> init(np.ones(2), Channel())
    CompressionState(residual=(), estimate=(), warm=(), key=())
    """
    feedback = channel.feedback
    if feedback not in (False, True, 'ef21') and not _is_fraction(feedback):
        raise InputError(
            f"feedback={feedback!r} must be False, True, 'ef21', or the fraction of the residual that is kept, "
            'a number between 0 and 1'
        )
    if channel.codec is None:
        if feedback:
            raise InputError(
                f'feedback={feedback!r} needs a codec: an exact mean has no compression error to feed back'
            )
        if channel.exchange is not None:
            raise InputError(f'exchange={channel.exchange!r} needs a codec: an exact mean is one all-reduce')
        return CompressionState((), (), (), ())
    leaves, treedef = jax.tree.flatten(params)
    zeros: list[Any] = [None] * len(leaves)
    warm: list[Any] = [None] * len(leaves)
    key = jax.random.key(channel.seed)
    groups = group_tensors(params, channel.codec, channel.exchange)
    if channel.exchange is not None and groups and not any(isinstance(group.codec, Codec) for group in groups):
        raise InputError(
            f'exchange={channel.exchange!r} is for codecs that encode messages; this codec brings its own collectives'
        )
    for group in groups:
        if feedback and isinstance(group.codec, Codec) and not group.codec.contracts:
            raise InputError(
                f'feedback={feedback!r} needs a contractive codec; the compression error of this one can be larger '
                'than what it compresses, so the residual would grow without bound'
            )
        first = group.start([jax.random.fold_in(key, i) for i in group.members])
        for i, state in zip(group.members, first, strict=True):
            zeros[i], warm[i] = jnp.zeros(leaves[i].shape, jnp.float32), state
    residual = collectives.pvary(jax.tree.unflatten(treedef, zeros), channel.axis) if feedback else ()
    estimate = jax.tree.unflatten(treedef, zeros) if feedback == 'ef21' else ()
    return CompressionState(residual, estimate, jax.tree.unflatten(treedef, warm) if jax.tree.leaves(warm) else (), key)


def mean(tree: Any, state: CompressionState, channel: Channel) -> tuple[Any, CompressionState]:
    """The mean over workers of each leaf, replicated, and the compression state after it.

    Where the mesh has other axes, each shard is averaged on its device (see `jaxdist.core.protocol.sharded_as`): a
    tensor that is flattened into one vector first would be all-gathered over those axes.

    Args:
        tree: floating-point arrays, of the same shapes on every worker.
        state: the compression state from `init` or from the last mean.
        channel: how the mean is computed.

    >>> import numpy as np
    >>> mean_of = lambda x: mean(x, CompressionState((), (), (), ()), Channel())[0]
    >>> jax.jit(jax.vmap(mean_of, axis_name='workers'))(np.arange(4, dtype=np.float32))
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    axis, feedback = channel.axis, channel.feedback
    if channel.codec is None:
        return exact_mean(tree, axis), state
    leaves, treedef = jax.tree.flatten(tree)
    residual, estimate, warm = (_field_leaves(field, treedef) for field in state[:3])
    key, step_key = jax.random.split(state.key)
    groups = group_tensors(tree, channel.codec, channel.exchange)
    encoded = {i for group in groups for i in group.members}
    exact = [i for i in range(len(leaves)) if i not in encoded]
    with leaves_sharded_as(exact):
        means = dict(zip(exact, exact_mean([leaves[i] for i in exact], axis), strict=True))
    for number, group in enumerate(groups):
        values = [_message(leaves[i].astype(jnp.float32), residual[i], feedback) for i in group.members]
        before, group_key = [warm[i] for i in group.members], jax.random.fold_in(step_key, number)
        results = group.runner(axis)(values, before, collectives.axis_index(axis), group_key)
        for i, mean, error, after in zip(group.members, *results, strict=True):
            warm[i] = after
            if feedback == 'ef21':
                mean = estimate[i] = estimate[i] + mean
            means[i] = mean.astype(leaves[i].dtype)
            if feedback == 'ef21':
                # The message value - residual was decoded as value - residual - error: that is added to the estimate.
                residual[i] = leaves[i].astype(jnp.float32) - error
            elif feedback:
                # Rounding the mean to a shorter dtype adds the same error on all workers, to each one's residual.
                residual[i] = error + (mean - means[i].astype(jnp.float32))
    rebuilt = lambda old, new: () if _is_unused(old) else jax.tree.unflatten(treedef, new)  # noqa: E731
    new_state = CompressionState(
        rebuilt(state.residual, residual), rebuilt(state.estimate, estimate), rebuilt(state.warm, warm), key
    )
    return jax.tree.unflatten(treedef, [means[i] for i in range(len(leaves))]), new_state


def bytes_sent(codec: AnyCodec | None = None, exchange: ExchangeName | None = None) -> Callable[[int, Any], Fraction]:
    """The formula `(workers, tree of float32) -> bytes` that one worker sends for one mean, on a mesh of workers only.

    >>> import numpy as np
    >>> bytes_sent()(8, np.ones(100))
    Fraction(700, 1)
    """

    def formula(workers: int, params: Any) -> Fraction:
        groups = group_tensors(params, codec, exchange) if codec is not None else []
        encoded = {i for group in groups for i in group.members}
        exact = sum(leaf.size for i, leaf in enumerate(jax.tree.leaves(params)) if i not in encoded)
        return Fraction(2 * (workers - 1), workers) * 4 * exact + sum(group.sends(workers) for group in groups)

    return formula


def exact_mean(tree: Any, axis: str) -> Any:
    """The mean over workers of each leaf, replicated, by one all-reduce; each shard is averaged on its device.

    >>> import numpy as np
    >>> jax.jit(jax.vmap(lambda x: exact_mean(x, 'w'), axis_name='w'))(np.arange(4, dtype=np.float32))
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    specs = shard_specs(tree)
    leaves, treedef = jax.tree.flatten(tree)
    if not specs or not any(map(spec_axes, specs)):
        return collectives.pmean(tree, axis)
    mesh = jax.sharding.get_abstract_mesh()
    others = set(mesh.axis_names) - set(mesh.manual_axes)
    mean = lambda leaves: collectives.pmean(leaves, axis)  # noqa: E731
    averaged = jax.shard_map(mean, in_specs=(specs,), out_specs=specs, axis_names=others)(leaves)
    return jax.tree.unflatten(treedef, averaged)


def _message(value: jax.Array, residual: jax.Array | None, feedback: Feedback) -> jax.Array:
    """The vector to compress: the value, with the residual added (error feedback) or subtracted (EF21)."""
    if residual is None:
        return value
    if feedback == 'ef21':
        return value - residual
    return value + (feedback * residual if _is_fraction(feedback) else residual)


def _is_fraction(feedback: Feedback) -> TypeGuard[float]:
    return isinstance(feedback, float) and 0 < feedback < 1


def _is_unused(field: Any) -> bool:
    return isinstance(field, tuple) and not field


def _field_leaves(field: Any, treedef: Any) -> list[Any]:
    """The entry of a state's field for each leaf, or None for each if the field is not used."""
    return [None] * treedef.num_leaves if _is_unused(field) else treedef.flatten_up_to(field)
