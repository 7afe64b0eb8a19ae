"""The types of codecs (compressors). Most encode a vector as bytes; others reduce matrices, or differ by tensor."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax

from jaxdist.core.errors import InputError

Shape = tuple[int, ...]


class Summed(NamedTuple):
    """An encoding whose messages are summed by an all-reduce, for a given number of workers.

    Attributes:
        size: `n -> bytes` of a message for n entries.
        agree: `x [n] -> float32 [m]`: quantities such as block scales, of which the encoding needs the maximum over
            workers; m may be 0.
        encode: `(x [n], largest [m], shared, own) -> array`, whose sum over workers stays within its dtype, with
            `largest` the maximum over workers of `agree(x)`. Of the keys, `shared` is the same on all workers and
            `own` differs.
        decode: `(total, largest [m], shared, n, count) -> float32 [n]`: the sum of the `count` vectors in `total`.
    """

    size: Callable[[int], int]
    agree: Callable[[jax.Array], jax.Array]
    encode: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    decode: Callable[[jax.Array, jax.Array, jax.Array, int, int], jax.Array]


class Codec(NamedTuple):
    """A compressor of float32 vectors: it encodes a vector as a message of bytes, and decodes it.

    Attributes:
        block: entries per block; the length of every vector is a multiple of it (the exchange pads with zeros).
        size: `n -> bytes` of the message for n entries.
        encode: `(x float32 [n], key) -> uint8 [size(n)]`; the key is for stochastic rounding.
        decode: `(uint8 [size(n)], n) -> float32 [n]`.
        contracts: whether this is a contractive compressor: E|x - C(x)|^2 < |x|^2, as error feedback needs.
        votes: whether the mean of decoded messages is encoded again as a majority vote; a decoded message then does not
            approximate the vector.
        summed: `workers -> Summed`, for a codec with summable messages; None for others.
        sums_as_fine: whether summable messages are as precise as the others.
        has_zero: whether a zero entry is always decoded as zero. Where it is not, workers vote which tensors are zero
            on all of them, and these stay zero.
        encode_part: `(x [n], real bool [n], key) -> message`, as `encode` but for a vector in which only the entries
            that are `real` count, for instance in the mean of a block; the others are padding. None if `encode` does
            not depend on padding with zeros.
    """

    block: int
    size: Callable[[int], int]
    encode: Callable[[jax.Array, jax.Array], jax.Array]
    decode: Callable[[jax.Array, int], jax.Array]
    contracts: bool = True
    votes: bool = False
    summed: Callable[[int], Summed] | None = None
    sums_as_fine: bool = False
    has_zero: bool = True
    encode_part: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None

    def message(self, x: jax.Array, real: jax.Array, key: jax.Array) -> jax.Array:
        """The message for a vector whose entries that are not `real` are padding with zeros."""
        return self.encode(x, key) if self.encode_part is None else self.encode_part(x, real, key)


class Reducer(NamedTuple):
    """A compressed mean over workers of several tensors with its own collectives, such as PowerSGD's two all-reduces.

    Attributes:
        start: `(shape, key) -> array`: the initial state for a tensor of this shape, replicated.
        mean: `(tensors, states, axis) -> (means, errors, states)`, lists of equal length: the approximate means over
            workers, replicated; each worker's compression errors, whose mean over workers is the exact mean minus the
            approximate one; and the states for the next mean.
        sends: `(workers, shapes) -> bytes` that one worker sends.
    """

    start: Callable[[Shape, jax.Array], jax.Array]
    mean: Callable[[list[jax.Array], list[Any], str], tuple[list[jax.Array], list[jax.Array], list[Any]]]
    sends: Callable[[int, Sequence[Shape]], Fraction]


class PerTensor(NamedTuple):
    """A choice of codec for each tensor, by its path and shape.

    Attributes:
        pick: `[(path, shape), ...] -> [codec, ...]`, with the shape of the shard on one device; None stands for an
            exact mean in float32.
    """

    pick: 'Callable[[Sequence[tuple[str, Shape]]], list[AnyCodec | None]]'


AnyCodec = Codec | Reducer | PerTensor
"""The types that an algorithm accepts as `codec`."""


def resolve(codec: AnyCodec | None, tensors: Sequence[tuple[str, Shape]]) -> list[Codec | Reducer | None]:
    """The codec of each tensor, with nested `PerTensor` choices resolved; None for an exact mean.

    Args:
        codec: the codec given to the algorithm.
        tensors: the path and the shape of each tensor.

    Raises:
        InputError: the codec is something else, such as the function that makes one.

    >>> exact = PerTensor(lambda tensors: [None for _ in tensors])
    >>> resolve(PerTensor(lambda tensors: [exact for _ in tensors]), [('w', (3,)), ('b', ())])
    [None, None]
    """
    given: Any = codec
    if not isinstance(given, Codec | Reducer | PerTensor | None):
        name = getattr(given, '__name__', repr(given))
        cure = f'call it, as in codec={name}()' if callable(given) else 'take one such as jaxdist.int8()'
        raise InputError(f'codec={name} is no codec: {cure}')
    if not isinstance(codec, PerTensor):
        return [codec] * len(tensors)
    picked = codec.pick(tensors)
    resolved: list[Codec | Reducer | None] = [None] * len(tensors)
    # By identity, not equality: two rules with equal codecs send separate messages.
    for choice in {id(each): each for each in picked}.values():
        members = [i for i, each in enumerate(picked) if each is choice]
        for i, leaf_codec in zip(members, resolve(choice, [tensors[i] for i in members]), strict=True):
            resolved[i] = leaf_codec
    return resolved


LANES = 512
"""Messages are padded to a multiple of this many bytes: a TPU sends whole tiles of 4 x 128 bytes."""


def padded(n: int, to: int) -> int:
    """The least multiple of `to` that is `n` or more.

    >>> padded(260, 128)
    384
    """
    return -(-n // to) * to
