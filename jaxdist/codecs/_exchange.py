"""Exchanges: the collectives that carry the messages of a compressed mean over workers, and the bytes they send."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.codecs.codec import Codec, Summed, padded
from jaxdist.core import collectives
from jaxdist.core.errors import InputError

ExchangeName = Literal['all_reduce', 'gather', 'two_phases']


class Exchange(NamedTuple):
    """A way to compute a compressed mean over workers.

    Attributes:
        mean: `(x [n], codec, key, axis, index) -> (mean [n], error [n])`: the mean over workers, and this worker's
            compression error; the mean of `error` over workers is the exact mean minus `mean`. `index` is the worker's
            index.
        sends: `(codec, workers, entries) -> bytes` that one worker sends.
        takes: `codec -> bool`, whether the codec's messages can be exchanged in this way.
        needs: the kind of messages that it needs, for error messages.
    """

    mean: Callable[[jax.Array, Codec, jax.Array, str, jax.Array], tuple[jax.Array, jax.Array]]
    sends: Callable[[Codec, int, int], Fraction]
    takes: Callable[[Codec], bool]
    needs: str


def two_phases(x: jax.Array, codec: Codec, key: jax.Array, axis: str, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A compressed reduce-scatter, whose means are encoded again for a compressed all-gather: 2 (W - 1) / W messages.

    Against `gather`, with W - 1 messages, there is a second compression error. It is added to the error of the worker
    that made it, W-fold because the mean divides by W; so the next mean receives all of it, as with the server's
    residual of DoubleSqueeze (Tang et al. 2019, arXiv 1905.05957). A worker's part for itself is not sent and thus not
    compressed, except for a majority vote.

    >>> import numpy as np
    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: two_phases(x, int8(block=1), jax.random.key(0), 'workers', collectives.axis_index())[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(np.float32([[0, 2], [4, 2]]))
    Array([[2., 2.],
           [2., 2.]], dtype=float32)
    """
    if not x.size:
        return x, x
    w = collectives.axis_size(axis)
    chunk = padded(-(-x.size // w), codec.block)
    count = -(-x.size // chunk)  # of small vectors, the last workers receive no entries
    in_parts = lambda each: jnp.pad(each, (0, count * chunk - x.size)).reshape(-1, chunk)  # noqa: E731
    parts, real = in_parts(x), in_parts(jnp.ones(x.shape, bool))
    # Each message is rounded with independent noise: noise shared by two workers would not average out.
    noise = jax.random.fold_in(key, index)
    messages = jax.vmap(codec.message)(parts, real, jax.random.split(noise, count))

    def answer(received: jax.Array, j: jax.Array, own: Any) -> tuple[jax.Array, jax.Array]:
        part, real, noise = own
        mean = _mean_of_messages(received, codec, part, real, j)
        message = codec.message(mean, real, noise)
        return message, w * (mean - codec.decode(message, chunk))

    own = parts[index], real[index], jax.random.fold_in(noise, w)
    answers, second_error = collectives.serve(messages, own, answer, axis)
    decode = jax.vmap(lambda message: codec.decode(message, chunk))
    error = (parts - decode(messages)).at[index].set(second_error)
    return decode(answers).reshape(-1)[: x.size], error.reshape(-1)[: x.size]


def reduce_scatter(
    parts: jax.Array, real: jax.Array, codec: Codec, keys: jax.Array, axis: str, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A compressed reduce-scatter of the mean: row j of `parts` is sent to worker j. W - 1 messages.

    A worker's row for itself is not sent and thus not compressed, except for a majority vote, which counts messages.

    Args:
        parts: this worker's values, [W, n].
        real: which of them are not padding, [W, n].
        codec: how a row is encoded.
        keys: a random key for each row.
        axis: the worker axis.
        index: this worker's index.

    Returns:
        The mean over workers of the rows that this worker receives, [n], and this worker's compression error, [W, n].

    >>> import numpy as np
    >>> from jaxdist.codecs.int8 import int8
    >>> real = jnp.ones((2, 1), bool)
    >>> run = lambda x, keys: reduce_scatter(x, real, int8(block=1), keys, 'workers', collectives.axis_index())[0]
    >>> each = jax.vmap(run, axis_name='workers', in_axes=(0, None))
    >>> jax.jit(each)(np.float32([[[0], [2]], [[4], [2]]]), jax.random.split(jax.random.key(0)))
    Array([[2.],
           [2.]], dtype=float32)
    """
    n = parts.shape[1]
    messages = jax.vmap(codec.message)(parts, real, keys)
    mean = _mean_of_messages(collectives.all_to_all(messages, axis), codec, parts[index], real[index], index)
    error = parts - jax.vmap(lambda message: codec.decode(message, n))(messages)
    return mean, error if codec.votes else error.at[index].set(0)


def all_gather(
    part: jax.Array, real: jax.Array, codec: Codec, key: jax.Array, axis: str
) -> tuple[jax.Array, jax.Array]:
    """A compressed all-gather: the decoded `part` [n] of each worker, [W, n], and this worker's compression error, [n].

    Entries that are not `real`, bools [n], are padding. Every worker, the sender included, uses the decoded part, so
    that the result is replicated. W - 1 messages.

    >>> import numpy as np
    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: all_gather(x, np.array([True]), int8(block=1), jax.random.key(0), 'workers')[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers', out_axes=None))(np.float32([[2], [4]]))
    Array([[2.],
           [4.]], dtype=float32)
    """
    message = codec.message(part, real, key)
    decoded = jax.vmap(lambda message: codec.decode(message, part.size))(collectives.all_gather(message, axis))
    return decoded, part - codec.decode(message, part.size)


def gather(x: jax.Array, codec: Codec, key: jax.Array, axis: str, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An all-gather of whole messages, averaged by each worker: W - 1 messages, and one compression error.

    >>> import numpy as np
    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: gather(x, int8(block=1), jax.random.key(0), 'workers', collectives.axis_index())[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(np.float32([[0, 2], [4, 2]]))
    Array([[2., 2.],
           [2., 2.]], dtype=float32)
    """
    real = _whole_blocks(jnp.ones(x.shape, bool), codec)
    decoded, error = all_gather(_whole_blocks(x, codec), real, codec, jax.random.fold_in(key, index), axis)
    mean = collectives.mean_rows(decoded)
    return mean[: x.size], error[: x.size]


def all_reduce(x: jax.Array, codec: Codec, key: jax.Array, axis: str, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An all-reduce of summable messages, as in IntSGD (Mishchenko et al. 2021, arXiv 2102.08374).

    A worker sends 2 (W - 1) / W messages. A first, small all-reduce takes the maximum of scales. The sum of integers
    must fit their bits, so their resolution falls with the number of workers.

    >>> import numpy as np
    >>> from jaxdist.codecs.int8 import int8
    >>> run = lambda x: all_reduce(x, int8(block=2), jax.random.key(0), 'workers', collectives.axis_index())[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(np.float32([[63, 2], [61, 4]]))
    Array([[62.,  3.],
           [62.,  3.]], dtype=float32)
    """
    w = collectives.axis_size(axis)
    scale = collectives.sum_scale(w)
    scaled, summed = _whole_blocks(x, codec) * scale, _summed(codec, w)
    largest = collectives.pmax(summed.agree(scaled), axis)
    message = summed.encode(scaled, largest, key, jax.random.fold_in(key, index))
    mean = summed.decode(collectives.psum(message, axis), largest, key, scaled.size, w) / (w * scale)
    error = (scaled - summed.decode(message, largest, key, scaled.size, 1)) / scale
    return mean[: x.size], error[: x.size]


def _mean_of_messages(
    received: jax.Array, codec: Codec, own: jax.Array, real: jax.Array, index: jax.Array
) -> jax.Array:
    """The mean [n] of the messages [W, bytes] of all workers; the worker `index` has its `own` values, not decoded."""
    decoded = jax.vmap(lambda message: codec.decode(message, own.size))(received)
    counted = decoded if codec.votes else decoded.at[index].set(own)
    mean = collectives.mean_rows(counted)
    # Without a code for zero, padding is decoded as something else, which must not be sent on.
    return mean if codec.has_zero else jnp.where(real, mean, 0)


def keep_zeros(exact: Sequence[jax.Array], coded: Sequence[Sequence[jax.Array]], codec: Codec, axis: str) -> Any:
    """What was decoded of tensors, with zeros for a tensor that is zero on all workers: they vote in one all-reduce.

    Args:
        exact: this worker's tensors, before they were encoded.
        coded: lists of decoded tensors, such as means and compression errors.
        codec: the codec; where it has a code for zero there is nothing to do.
        axis: the worker axis.

    >>> import numpy as np
    >>> from jaxdist.codecs.sign import sign
    >>> run = lambda x: keep_zeros([x, 0 * x], [[x + 1, x + 1]], sign(), 'workers')[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(np.float32([0, 1]))
    [Array([1., 2.], dtype=float32), Array([0., 0.], dtype=float32)]
    """
    if codec.has_zero:
        return coded
    votes = collectives.psum(jnp.stack([jnp.any(x != 0).astype(jnp.float32) for x in exact]), axis)
    return [[jnp.where(vote > 0, x, 0) for vote, x in zip(votes, tensors, strict=True)] for tensors in coded]


def votes_sent(codec: Codec, w: int, tensors: int) -> Fraction:
    """Bytes that one worker sends in `keep_zeros`.

    >>> from jaxdist.codecs.sign import sign
    >>> votes_sent(sign(), 4, 10)
    Fraction(60, 1)
    """
    return Fraction(0) if codec.has_zero else Fraction(2 * (w - 1), w) * 4 * tensors


def _whole_blocks(x: jax.Array, codec: Codec) -> jax.Array:
    """The vector, padded with zeros to whole blocks of the codec."""
    return jnp.pad(x, (0, padded(x.size, codec.block) - x.size))


def _summed(codec: Codec, w: int) -> Summed:
    assert codec.summed is not None  # `choose` checks it
    return codec.summed(w)


def _two_phases_sends(codec: Codec, w: int, n: int) -> Fraction:
    return Fraction(2 * (w - 1) * codec.size(padded(-(-n // w), codec.block)))


def _gather_sends(codec: Codec, w: int, n: int) -> Fraction:
    return Fraction((w - 1) * codec.size(padded(n, codec.block)))


def _all_reduce_sends(codec: Codec, w: int, n: int) -> Fraction:
    whole, summed = padded(n, codec.block), _summed(codec, w)
    agreed = jax.eval_shape(summed.agree, jax.ShapeDtypeStruct((whole,), jnp.float32)).size
    return Fraction(2 * (w - 1), w) * (summed.size(whole) + 4 * agreed)


EXCHANGES: dict[str, Exchange] = {
    'gather': Exchange(gather, _gather_sends, lambda codec: not codec.votes, 'messages that any worker can average'),
    'all_reduce': Exchange(all_reduce, _all_reduce_sends, lambda codec: codec.summed is not None, 'summable messages'),
    'two_phases': Exchange(two_phases, _two_phases_sends, lambda codec: True, 'any messages'),
}
"""The exchanges by name. Among those that send equally few bytes, `choose` prefers the first: fewer roundings."""


def choose(name: ExchangeName | None, codec: Codec, w: int, n: int) -> Exchange:
    """The exchange of this name or, without a name, the one that sends the fewest bytes.

    Without a name, an all-reduce of integers is not considered: its resolution is coarser.

    Args:
        name: the exchange's name, or None.
        codec: the codec of the messages.
        w: the number of workers.
        n: the entries of the vector.

    Raises:
        InputError: there is no such exchange, or it does not take the codec's messages.

    >>> from jaxdist.codecs.int8 import int8
    >>> choose(None, int8(), 8, 10**6) is EXCHANGES['two_phases'], choose(None, int8(), 2, 10**6) is EXCHANGES['gather']
    (True, True)
    """
    if name is None:
        possible = [exchange for exchange in EXCHANGES.values() if exchange.takes(codec)]
        precise = [exchange for exchange in possible if exchange.mean is not all_reduce or codec.sums_as_fine]
        return min(precise, key=lambda exchange: exchange.sends(codec, w, n))
    if name not in EXCHANGES:
        raise InputError(f'exchange={name!r} must be one of {sorted(EXCHANGES)}, or None for the one that sends least')
    exchange = EXCHANGES[name]
    if not exchange.takes(codec):
        others = [other for other, each in EXCHANGES.items() if each.takes(codec)]
        raise InputError(f'exchange={name!r} takes a codec with {exchange.needs}; this one can travel by {others}')
    return exchange
