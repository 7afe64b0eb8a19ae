"""Streaming DiLoCo: fragments meet one after the other, while workers train on (Douillard et al. 2025, arXiv
2501.18512).
"""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.algorithms._fragments import Rule, divide, join, pick
from jaxdist.codecs import _compressed_mean as compressed
from jaxdist.codecs._compressed_mean import Channel, CompressionState, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs._groups import settled
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int4 import int4
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.protocol import leaves_sharded_as
from jaxdist.core.registry import algorithm


class StreamingDilocoState(NamedTuple):
    """Where each fragment's workers last met.

    Attributes:
        step: steps taken, an int32 scalar.
        anchor: each fragment where its workers last met, which all share.
        outer: the outer optimiser's state for each fragment, which all share.
        sent: with overlap, this worker's ways back to the anchors that are on their way; else ().
        compression: the state of the compressed mean, for each fragment.
    """

    step: jax.Array
    anchor: optax.Params
    outer: tuple[optax.OptState, ...]
    sent: optax.Updates
    compression: tuple[CompressionState, ...]

    @property
    def workers_diverge(self) -> bool:
        """Workers differ on purpose between meetings."""
        return True


def _late(puts: np.ndarray, start: np.ndarray, every: int, overlap: int, mixing: float) -> np.ndarray:
    """One fragment with an outer rate of 1 in a plain loop, for a law: from [T, W, ...], what each worker moves by."""
    x, anchor, moves = np.repeat(start[None], puts.shape[1], 0), start, []
    for t, put in enumerate(puts, 1):
        there = x + put
        if t % every == 0:
            back = anchor - there
        if t > every and t % every == overlap:
            anchor = anchor - back.mean(0)
            there = mixing * there + (1 - mixing) * anchor
        moves.append(there - x)
        x = there
    return np.stack(moves)


def _each_sends(codec: AnyCodec | None, count: int, rule: Rule = 'balanced') -> laws.Formula:
    """What a worker sends for all fragments together."""

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
            laws.matches_reference(lambda puts, start: _late(puts, start, every=3, overlap=2, mixing=0.25)),
        ),
        'streaming_diloco(every=4, fragments=2, outer=sgd(1.0), overlap=0, mixing=0.0, codec=int4())': (
            laws.sends(_each_sends(int4(), 2), every=4),
        ),
    },
    syncs='parameters',
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
    """As `diloco`, but the parameters meet in fragments, each at its own step of every `every`, and late.

    Fragment p of P is taken at the steps p every / P, and `every` apart from there. `overlap` steps later the outer
    optimiser has stepped from the fragment's anchor along the mean of the ways that were taken, and each worker goes on
    from `mixing` parts of where it is by then and the rest of the new anchor. With overlap that mean depends on nothing
    that the step computes, and can run beside it; it is sent in the last of these steps. Fragments are whole tensors.

    A worker that the step's guard has made `idle` does not move by itself; its fragments meet where they stand. On
    another number of workers a run goes on from the anchors and outer states as they are, with all workers at the mean
    of where they were, and the mean of what was on its way on its way.

    Args:
        every: steps from one meeting of a fragment to its next (the paper's H, 100).
        fragments: how many there are; the paper has about one for three layers.
        outer: any optax optimiser; the paper's is `sgd(0.4, momentum=0.9, nesterov=True)` or near it.
        overlap: steps from the taking of a fragment to its meeting (the paper's tau); 0, in the same step.
        mixing: how much of a worker's own place stays at a meeting (the paper's alpha); 0, nothing.
        rule: which tensors make a fragment: `balanced` in size, `sequential`, or `strided`.
        codec, feedback, exchange, seed: the compressed mean, see `Channel`; the paper has four bits.
        axis: the worker axis.

    Raises:
        InputError: `every` below 1, `overlap` not in [0, every), `mixing` not in [0, 1), more fragments than tensors,
            `outer` is no optimiser, feedback or an exchange without a codec, or no parameters given to `update`.

    >>> update = streaming_diloco(every=1, fragments=1, outer=optax.sgd(1.0), overlap=0, mixing=0.5)
    >>> run = lambda p, u: p + update.update(u, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([2. , 2.5, 4.5], dtype=float32)
    """
    _check(every, overlap, mixing)
    outer = check_optimizer('streaming_diloco', outer)
    channel = Channel(axis, codec, feedback, exchange, seed)

    def channels(params: Any) -> list[tuple[tuple[int, ...], Channel]]:
        """The members of each fragment, and how it is sent."""
        chosen = channel._replace(codec=settled(codec, params))
        parts = divide(params, fragments, rule)
        return [(members, chosen._replace(seed=seed + number)) for number, members in enumerate(parts)]

    def init(params: optax.Params) -> StreamingDilocoState:
        memory, states = [], []
        for members, own in channels(params):
            with leaves_sharded_as(members):
                memory.append(compressed.init(pick(params, members), own))
                states.append(outer.init(pick(params, members)))
        nothing = collectives.pvary(jax.tree.map(jnp.zeros_like, params), axis) if overlap else ()
        return StreamingDilocoState(jnp.zeros((), jnp.int32), params, tuple(states), nothing, tuple(memory))

    def update(
        updates: optax.Updates, state: StreamingDilocoState, params: Any = None, *, rejected: Any = False, **_: Any
    ) -> tuple[optax.Updates, StreamingDilocoState]:
        periodic.require_params('streaming_diloco', params)
        updates, step = periodic.mask_rejected(updates, rejected), state.step + 1
        back = periodic.displacement(optax.apply_updates(params, updates), state.anchor, axis)
        parts, taken = channels(params), state.sent if overlap else back

        def turn(number: int, members: tuple[int, ...], own: Channel) -> tuple[Any, ...]:
            here, u, anchor, sent = (pick(tree, members) for tree in (params, updates, state.anchor, taken))
            outer_state, memory = state.outer[number], state.compression[number]

            def meet() -> tuple[Any, ...]:
                gradient, after = compressed.mean(sent, memory, own)
                move, outer_after = outer.update(gradient, outer_state, anchor)
                new = optax.apply_updates(anchor, move)
                there = jax.tree.map(lambda x, v, a: mixing * (x + v) + (1 - mixing) * a, here, u, new)
                return periodic.displacement(here, there if mixing else new, axis), new, outer_after, after

            def stay() -> tuple[Any, ...]:
                return collectives.pvary(u, axis), anchor, outer_state, memory

            due = (step > overlap) & ((step - overlap - number * every // len(parts)) % every == 0)
            with leaves_sharded_as(members):
                return lax.cond(due, meet, stay)

        after = [turn(number, *part) for number, part in enumerate(parts)]
        moves, anchors, outers, memories = zip(*after, strict=True)
        sent = _taken(step, every, [members for members, _ in parts], back, state.sent) if overlap else ()
        return join(moves), StreamingDilocoState(step, join(anchors), outers, sent, memories)

    return optax.GradientTransformationExtraArgs(init, update)


def _taken(step: jax.Array, every: int, parts: list[tuple[int, ...]], back: Any, sent: Any) -> Any:
    """What is on its way after this step: of the fragments that are taken in it, the ways back as they are now."""

    def one(number: int, members: tuple[int, ...]) -> Any:
        now = (step - number * every // len(parts)) % every == 0
        return jax.tree.map(lambda b, s: jnp.where(now, b, s), pick(back, members), pick(sent, members))

    return join([one(number, members) for number, members in enumerate(parts)])


def _check(every: int, overlap: int, mixing: float) -> None:
    if callable(every):
        raise InputError('streaming_diloco: every is a schedule; fragments take turns in a fixed number of steps')
    periodic.check_every('streaming_diloco', every)
    if not 0 <= overlap < every:
        raise InputError(f'streaming_diloco: overlap={overlap} must be 0 or more, and less than every={every}')
    if not 0 <= mixing < 1:
        raise InputError(f'streaming_diloco: mixing={mixing} must be 0 or more, and less than 1: 1 would never meet')
