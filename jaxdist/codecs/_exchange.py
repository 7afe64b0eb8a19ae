"""How messages travel: ways to take the mean over workers of a vector through a codec, each with its bytes."""

from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.codecs.codec import Codec, Summed, padded
from jaxdist.core import collectives
from jaxdist.core.errors import InputError

ExchangeName = Literal['all_reduce', 'gather', 'two_phases']


class Exchange(NamedTuple):
    """A way for messages to travel.

    Attributes:
        mean: `(x [n], codec, key, axis, me) -> (mean [n], left [n])`: the mean over workers, and what this worker's
            messages left out of it; the mean of `left` over workers is what the mean lacks. `me` is the worker's
            number.
        sends: `(codec, workers, entries) -> bytes` that one worker sends.
        takes: whether a codec can travel so.
        needs: what a codec has that can, for a message.
    """

    mean: Callable[[jax.Array, Codec, jax.Array, str, jax.Array], tuple[jax.Array, jax.Array]]
    sends: Callable[[Codec, int, int], Fraction]
    takes: Callable[[Codec], bool]
    needs: str


def two_phases(x: jax.Array, codec: Codec, key: jax.Array, axis: str, me: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each worker sends every other its part of the vector, which takes the mean, encodes that and sends it to all.

    That is 2 (W - 1) / W messages a worker, where everybody's sending everything takes W - 1; and a second rounding.
    The error of that is left with the worker that made it, W-fold because the mean divides by W. A worker's own part
    goes nowhere and is not rounded, unless it is a vote: so the whole of that error gets into the next mean, as with
    the server's residual of DoubleSqueeze (Tang et al. 2019, arXiv 1905.05957).

    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: two_phases(x, int8(block=1), jax.random.key(0), 'workers', collectives.axis_index())[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.array([[0.0, 2.0], [4.0, 2.0]]))
    Array([[2., 2.],
           [2., 2.]], dtype=float32)
    """
    w = collectives.axis_size(axis)
    chunk = padded(-(-x.size // w), codec.block)
    parts = jnp.pad(x, (0, w * chunk - x.size)).reshape(w, chunk)
    # Every message is rounded by noise of its own: the same noise on two workers would not average out.
    keys = jax.random.split(jax.random.fold_in(key, me), w + 1)
    mean, left = push(parts, codec, keys[:w], axis, me)
    whole, rest = pull(mean, codec, keys[w], axis)
    return whole.reshape(-1)[: x.size], left.at[me].set(w * rest).reshape(-1)[: x.size]


def push(parts: jax.Array, codec: Codec, keys: jax.Array, axis: str, me: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row j of `parts` [W, n] goes to worker j: the mean over workers of what comes, [n], and what was left out [W, n].

    A worker's own part goes nowhere, so it is not rounded, unless it is a vote, which is counted. W - 1 messages.

    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: push(
    ...     x, int8(block=1), jax.random.split(jax.random.key(0)), 'workers', collectives.axis_index()
    ... )[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.array([[[0.0], [2.0]], [[4.0], [2.0]]]))
    Array([[2.],
           [2.]], dtype=float32)
    """
    w, n = parts.shape
    messages = jax.vmap(codec.encode)(parts, keys)
    decode = jax.vmap(lambda message: codec.decode(message, n))
    told = decode(collectives.all_to_all(messages, axis))
    mean = collectives.sum_rows(told if codec.votes else told.at[me].set(parts[me])) / w
    left = parts - decode(messages)
    return mean, left if codec.votes else left.at[me].set(0)


def pull(part: jax.Array, codec: Codec, key: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """Everybody's `part` [n], as all decode it, [W, n], and what this worker's message left out, [n]. W - 1 messages.

    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: pull(x, int8(block=1), jax.random.key(0), 'workers')[0]
    >>> jax.vmap(run, axis_name='workers', out_axes=None)(jnp.array([[2.0], [4.0]]))
    Array([[2.],
           [4.]], dtype=float32)
    """
    message = codec.encode(part, key)
    everybody = jax.vmap(lambda message: codec.decode(message, part.size))(collectives.all_gather(message, axis))
    return everybody, part - codec.decode(message, part.size)


def gather(x: jax.Array, codec: Codec, key: jax.Array, axis: str, me: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Everybody sends everything to everybody: W - 1 messages a worker, and one rounding.

    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: gather(x, int8(block=1), jax.random.key(0), 'workers', collectives.axis_index())[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.array([[0.0, 2.0], [4.0, 2.0]]))
    Array([[2., 2.],
           [2., 2.]], dtype=float32)
    """
    everybody, left = pull(_whole(x, codec), codec, jax.random.fold_in(key, me), axis)
    return (collectives.sum_rows(everybody) / collectives.axis_size(axis))[: x.size], left[: x.size]


def all_reduce(x: jax.Array, codec: Codec, key: jax.Array, axis: str, me: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Messages add up on the way, as in IntSGD (Mishchenko et al. 2021, arXiv 2102.08374): 2 (W - 1) / W of one.

    Scales have to be agreed on first, and sums have to fit: whole numbers get coarser with more workers.

    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: all_reduce(x, int8(block=2), jax.random.key(0), 'workers', collectives.axis_index())[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.array([[63.0, 2.0], [61.0, 4.0]]))
    Array([[62.,  3.],
           [62.,  3.]], dtype=float32)
    """
    w, whole = collectives.axis_size(axis), _whole(x, codec)
    summed = _summed(codec, w)
    largest = collectives.pmax(summed.agree(whole), axis)
    message = summed.encode(whole, largest, key, jax.random.fold_in(key, me))
    mean = summed.decode(collectives.psum(message, axis), largest, key, whole.size, w) / w
    left = whole - summed.decode(message, largest, key, whole.size, 1)
    return mean[: x.size], left[: x.size]


def _whole(x: jax.Array, codec: Codec) -> jax.Array:
    return jnp.pad(x, (0, padded(x.size, codec.block) - x.size))


def _summed(codec: Codec, w: int) -> Summed:
    assert codec.summed is not None  # `choose` has seen to that
    return codec.summed(w)


def _two_phases_send(codec: Codec, w: int, n: int) -> Fraction:
    return Fraction(2 * (w - 1) * codec.size(padded(-(-n // w), codec.block)))


def _gather_sends(codec: Codec, w: int, n: int) -> Fraction:
    return Fraction((w - 1) * codec.size(padded(n, codec.block)))


def _all_reduce_sends(codec: Codec, w: int, n: int) -> Fraction:
    whole, summed = padded(n, codec.block), _summed(codec, w)
    agreed = jax.eval_shape(summed.agree, jax.ShapeDtypeStruct((whole,), jnp.float32)).size
    return Fraction(2 * (w - 1), w) * (summed.size(whole) + 4 * agreed)


EXCHANGES: dict[str, Exchange] = {
    'gather': Exchange(gather, _gather_sends, lambda codec: not codec.votes, 'messages that anybody may average'),
    'all_reduce': Exchange(
        all_reduce, _all_reduce_sends, lambda codec: codec.summed is not None, 'messages that add up on the way'
    ),
    'two_phases': Exchange(two_phases, _two_phases_send, lambda codec: True, 'any'),
}
"""In the order of preference where they send the same: fewer roundings first."""


def choose(name: ExchangeName | None, codec: Codec, w: int, n: int) -> Exchange:
    """The exchange of this name; without one, that which sends least for so many workers and entries.

    An exchange that would cost precision (whole numbers that leave room for their sum) is taken by name only.

    Raises:
        InputError: there is no such exchange, or the codec cannot travel so.

    >>> from jaxdist.codecs.int8 import int8
    >>> choose(None, int8(), 8, 10**6) is EXCHANGES['two_phases'], choose(None, int8(), 2, 10**6) is EXCHANGES['gather']
    (True, True)
    """
    if name is None:
        able = [e for e in EXCHANGES.values() if e.takes(codec)]
        fine = [e for e in able if e.mean is not all_reduce or codec.sums_as_fine]
        return min(fine, key=lambda exchange: exchange.sends(codec, w, n))
    if name not in EXCHANGES:
        raise InputError(f'exchange={name!r} must be one of {sorted(EXCHANGES)}, or None for the one that sends least')
    exchange = EXCHANGES[name]
    if not exchange.takes(codec):
        others = [other for other, each in EXCHANGES.items() if each.takes(codec)]
        raise InputError(f'exchange={name!r} takes a codec with {exchange.needs}; this one can travel by {others}')
    return exchange
