"""What a codec is: how arrays are put on the wire. Most turn a vector into bytes and back; some need to know more."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax

Shape = tuple[int, ...]


class Summed(NamedTuple):
    """Messages that add up on the way, for a number of workers: one all-reduce carries them.

    Attributes:
        size: the bytes of a message for n entries.
        agree: `x [n] -> float32 [m]`: numbers of which all workers learn the largest first; m may be 0.
        encode: `(x [n], largest [m], shared, own) -> array`, whose sum over workers stays within its dtype. Of the
            keys, `shared` is the same on all workers and `own` another on each.
        decode: `(total, largest [m], shared, n, count) -> float32 [n]`: the sum of `count` encoded vectors.
    """

    size: Callable[[int], int]
    agree: Callable[[jax.Array], jax.Array]
    encode: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    decode: Callable[[jax.Array, jax.Array, jax.Array, int, int], jax.Array]


class Codec(NamedTuple):
    """How a float32 vector crosses the wire.

    Attributes:
        block: vectors come in multiples of this many entries (the exchange pads with zeros).
        size: the bytes of the message for n entries.
        encode: `(x float32 [n], key) -> uint8 [size(n)]`. The key is for codecs that round at random.
        decode: `(uint8 [size(n)], n) -> float32 [n]`.
        contracts: whether the error is on average smaller than the vector, as error feedback needs it.
        votes: whether messages are votes, counted in one place; else they stand for the vector.
        summed: `workers -> Summed`, for codecs whose messages can add up on the way.
        sums_as_fine: whether messages that add up lose no more than others.
    """

    block: int
    size: Callable[[int], int]
    encode: Callable[[jax.Array, jax.Array], jax.Array]
    decode: Callable[[jax.Array, int], jax.Array]
    contracts: bool = True
    votes: bool = False
    summed: Callable[[int], Summed] | None = None
    sums_as_fine: bool = False


class Reducer(NamedTuple):
    """A way to take the mean over workers of several tensors that is not one of messages.

    Attributes:
        start: `(shape, key) -> array`: what all workers remember of a tensor of this shape from mean to mean.
        mean: `(tensors, remembered, axis) -> (means, left, remembered)`, lists alike: the means over workers, which
            all share; what this worker holds that did not get into them, whose mean is what the means lack; and what
            to remember.
        sends: `(workers, shapes) -> bytes` that one worker sends.
    """

    start: Callable[[Shape, jax.Array], jax.Array]
    mean: Callable[[list[jax.Array], list[Any], str], tuple[list[jax.Array], list[jax.Array], list[Any]]]
    sends: Callable[[int, Sequence[Shape]], Fraction]


class PerTensor(NamedTuple):
    """Another codec for each tensor.

    Attributes:
        pick: `[(path, shape), ...] -> [codec, ...]`: for each tensor, as a device holds it, its codec; None for float32
            as it is.
    """

    pick: 'Callable[[Sequence[tuple[str, Shape]]], list[AnyCodec | None]]'


AnyCodec = Codec | Reducer | PerTensor
"""What an algorithm takes as `codec`."""


def resolve(codec: AnyCodec | None, tensors: Sequence[tuple[str, Shape]]) -> list[Codec | Reducer | None]:
    """The codec of each tensor `(path, shape)`, choices within choices made.

    >>> odd = PerTensor(lambda tensors: [None for _ in tensors])
    >>> resolve(PerTensor(lambda tensors: [odd for _ in tensors]), [('w', (3,)), ('b', ())])
    [None, None]
    """
    if not isinstance(codec, PerTensor):
        return [codec] * len(tensors)
    picked = codec.pick(tensors)
    out: list[Codec | Reducer | None] = [None] * len(tensors)
    for choice in {id(each): each for each in picked}.values():
        members = [i for i, each in enumerate(picked) if each is choice]
        for i, found in zip(members, resolve(choice, [tensors[i] for i in members]), strict=True):
            out[i] = found
    return out


LANES = 512
"""Messages are padded to a multiple of this many bytes, to fill a TPU's tiles of 4 x 128 bytes: it sends whole ones.
"""


def padded(n: int, to: int) -> int:
    """The least multiple of `to` that is `n` or more.

    >>> padded(260, 128)
    384
    """
    return -(-n // to) * to
