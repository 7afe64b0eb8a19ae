"""Streaming DiLoCo: fragments of the parameters are synchronised in turn, while local training continues (Douillard et
al. 2025, arXiv 2501.18512).
"""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.algorithms._fragments import Rule, divide, join, pick
from jaxdist.codecs import _compressed_mean as compressed
from jaxdist.codecs._compressed_mean import Channel, CompressionState, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs._groups import resolve_for
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int4 import int4
from jaxdist.core import collectives
from jaxdist.core.conditional import when
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.protocol import check_local, leaves_sharded_as, synchronised
from jaxdist.core.registry import algorithm


class StreamingDilocoState(NamedTuple):
    """The outer optimisation of each fragment.

    Attributes:
        step: steps taken, an int32 scalar; replicated.
        anchor: the parameters of each fragment's last round, replicated.
        outer: the outer optimiser's state for each fragment, replicated.
        sent: with overlap, this worker's pseudo-gradients in flight; else ().
        compression: the state of the compressed mean, for each fragment.
    """

    step: jax.Array
    anchor: optax.Params
    outer: tuple[optax.OptState, ...]
    sent: optax.Updates
    compression: tuple[CompressionState, ...]

    @property
    def workers_diverge(self) -> bool:
        """Workers diverge between rounds."""
        return True


def _overlapped_updates(
    local_updates: np.ndarray, start: np.ndarray, every: int, overlap: int, mixing: float
) -> np.ndarray:
    """The same with one fragment and an outer rate of 1 in plain NumPy, for a law: local updates [T, W, ...] to updates
    [T, W, ...].
    """
    x, anchor, updates = np.repeat(start[None], local_updates.shape[1], 0), start, []
    for t, local in enumerate(local_updates, 1):
        new = x + local
        if t % every == 0:
            pseudo_gradient = anchor - new
        if t > every and t % every == overlap:
            anchor = anchor - pseudo_gradient.mean(0)
            new = mixing * new + (1 - mixing) * anchor
        updates.append(new - x)
        x = new
    return np.stack(updates)


def _fragment_bytes(codec: AnyCodec | None, count: int, rule: Rule = 'balanced') -> laws.Formula:
    """The formula of the bytes that a worker sends for all fragments together."""

    def formula(workers: int, params: Any) -> Fraction:
        parts = [pick(params, members) for members in divide(params, count, rule)]
        return sum((bytes_sent(codec)(workers, part) for part in parts), Fraction(0))

    return formula


NESTEROV = 'sgd(0.7, momentum=0.9, nesterov=True)'


@algorithm(
    paper='Douillard et al. 2025, Streaming DiLoCo, arXiv 2501.18512',
    examples={
        f'streaming_diloco(every=4, fragments=1, outer={NESTEROV}, overlap=0, mixing=0.0)': (
            laws.equals(f'diloco(every=4, outer={NESTEROV})'),
            laws.sends(bytes_sent(), every=4),
        ),
        "streaming_diloco(every=6, fragments=3, outer=sgd(1.0), overlap=0, mixing=0.0, rule='strided')": (
            laws.synchronises_in_turn(6),
            laws.alike_equals_one(),
            laws.conserves_mean(),
            laws.sends(bytes_sent(), every=6),
        ),
        'streaming_diloco(every=3, fragments=1, outer=sgd(1.0), overlap=2, mixing=0.25)': (
            laws.matches_reference(
                lambda updates, start: _overlapped_updates(updates, start, every=3, overlap=2, mixing=0.25)
            ),
        ),
        'streaming_diloco(every=3, fragments=1, outer=sgd(1.0), overlap=1, mixing=1.0)': (laws.equals('identity()'),),
        'streaming_diloco(every=4, fragments=2, outer=sgd(1.0), overlap=0, mixing=0.0, codec=int4())': (
            laws.sends(_fragment_bytes(int4(), 2), every=4),
        ),
    },
    syncs='parameters',
    overlap='overlap',
)
def streaming_diloco(
    every: int,
    fragments: int,
    outer: optax.GradientTransformation,
    overlap: int = 1,
    mixing: float = 0.5,
    rule: Rule = 'balanced',
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo in fragments: each is synchronised once every `every` steps, in turn, and with a delay of `overlap` steps.

    The pseudo-gradient of fragment p of P is taken at step p every / P, and every `every` steps from there. `overlap`
    steps later the outer optimiser moves the fragment's anchor along the mean pseudo-gradient, and each worker goes on
    from `mixing` times its parameters at that step plus (1 - `mixing`) times the new anchor. A fragment is one or more
    whole tensors.

    It stands last in the line, after the inner optimiser, whose state stays local. At the end of a fragment's overlap
    workers send its pseudo-gradients; at other steps nothing is communicated. With overlap these are in the state when
    the step begins, so the mean can overlap with the step's computation. A worker whose step the guard rejects does not
    move by itself; its fragments take part with their present parameters. On another number of workers the anchors and
    outer states stay as they are, all workers start from the mean of the workers' parameters, and pseudo-gradients in
    flight become their mean.

    Args:
        every: steps from one round of a fragment to its next (the paper's H, 100).
        fragments: the number of fragments; the paper has about one for three layers.
        outer: the outer optimiser, any of optax; the paper's is `sgd(0.4, momentum=0.9, nesterov=True)` or near it.
        overlap: steps from taking a fragment's pseudo-gradient to its outer step (the paper's tau); 0, the same step.
        mixing: the weight of a worker's own parameters after a round (the paper's alpha); 0 for the anchor alone. With
            1 workers never move to the anchor, which only follows them: a baseline of separate workers.
        rule: which tensors form a fragment: `balanced` in size, `sequential`, or `strided`.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`; the paper has four
            bits.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `overlap` is not in [0, every), `mixing` is not in [0, 1], there are more
            fragments than tensors, `outer` is not an optimiser, feedback or an exchange is given without a codec, or
            `update` is given no parameters.

    >>> update = streaming_diloco(every=1, fragments=1, outer=optax.sgd(1.0), overlap=0, mixing=0.5)
    >>> run = lambda p, u: p + update.update(u, update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([2. , 2.5, 4.5], dtype=float32)
    """
    _check(every, overlap, mixing)
    outer = check_optimizer('streaming_diloco', outer)
    channel = Channel(axis, codec, feedback, exchange, seed)

    def channels(params: optax.Params) -> list[tuple[tuple[int, ...], Channel]]:
        """The leaves of each fragment, and the channel of its mean."""
        # A codec that depends on a tensor's path is resolved on the whole tree: a fragment may lack a rule's tensors.
        resolved = channel._replace(codec=resolve_for(codec, params))
        parts = divide(params, fragments, rule)
        return [(members, resolved._replace(seed=seed + number)) for number, members in enumerate(parts)]

    def init(params: optax.Params) -> StreamingDilocoState:
        compressions, outers = [], []
        for members, own in channels(params):
            with leaves_sharded_as(members):
                compressions.append(compressed.init(pick(params, members), own))
                outers.append(outer.init(pick(params, members)))
        zeros = collectives.pvary(jax.tree.map(jnp.zeros_like, params), axis) if overlap else ()
        return StreamingDilocoState(jnp.zeros((), jnp.int32), params, tuple(outers), zeros, tuple(compressions))

    def update(
        updates: optax.Updates,
        state: StreamingDilocoState,
        params: optax.Params | None = None,
        *,
        rejected: Any = False,
        **_: Any,
    ) -> tuple[optax.Updates, StreamingDilocoState]:
        periodic.require_params('streaming_diloco', params)
        check_local('streaming_diloco', updates, axis)
        updates, step = periodic.mask_rejected(updates, rejected), state.step + 1
        parts = channels(params)

        def turn(number: int, members: tuple[int, ...], own: Channel) -> tuple[Any, ...]:
            """One fragment's updates, anchor, outer state, compression state and pseudo-gradients after this step."""
            start, local, anchor = (pick(tree, members) for tree in (params, updates, state.anchor))
            in_flight, first = pick(state.sent, members) if overlap else (), number * every // len(parts)

            def pseudo_gradients(local: Any, anchor: Any) -> Any:
                return periodic.displacement(optax.apply_updates(start, local), anchor, axis)

            def synchronise(before: tuple[Any, ...]) -> tuple[Any, ...]:
                local, anchor, outer_state, compression = before
                message = in_flight if overlap else pseudo_gradients(local, anchor)
                gradient, compression = compressed.mean(message, compression, own)
                outer_updates, outer_state = outer.update(gradient, outer_state, anchor)
                new = optax.apply_updates(anchor, outer_updates)
                mixed = jax.tree.map(lambda x, u, a: mixing * (x + u) + (1 - mixing) * a, start, local, new)
                moves = periodic.displacement(start, mixed if mixing else new, axis)
                return moves, new, outer_state, compression

            # Fragment 0 has its first turn at step `every`: at step `overlap` nothing of it is in flight.
            due = (step > overlap) & ((step - overlap - first) % every == 0)
            before = (collectives.pvary(local, axis), anchor, state.outer[number], state.compression[number])
            with leaves_sharded_as(members):
                moves, anchor, outer_state, compression = when(due, synchronise, before)
            if overlap:
                # No fragment has its turn at the step at which its pseudo-gradients are taken: `moves` are local, and
                # the anchor is that of its last round. From `local` and `state.anchor`, XLA would copy the buffers.
                taken = (step - first) % every == 0
                in_flight = when(taken, lambda _: pseudo_gradients(moves, anchor), in_flight)
            return moves, anchor, outer_state, compression, in_flight

        after = [turn(number, *part) for number, part in enumerate(parts)]
        moves, anchors, outers, compressions, sent = zip(*after, strict=True)
        new = StreamingDilocoState(step, join(anchors), outers, join(sent) if overlap else (), compressions)
        return synchronised('streaming_diloco', join(moves)), new

    return optax.GradientTransformationExtraArgs(init, update)


def _check(every: int, overlap: int, mixing: float) -> None:
    """Checks the numbers among the arguments of `streaming_diloco`."""
    if callable(every):
        raise InputError('streaming_diloco: every is a schedule; fragments take turns in a fixed number of steps')
    periodic.check_every('streaming_diloco', every)
    if not 0 <= overlap < every:
        raise InputError(f'streaming_diloco: overlap={overlap} must be 0 or more, and less than every={every}')
    if not 0 <= mixing <= 1:
        raise InputError(
            f'streaming_diloco: mixing={mixing} must be from 0, for the anchor alone, to 1, for own parameters alone'
        )
