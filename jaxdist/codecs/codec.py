"""A codec says how an array is put on the wire: a vector of numbers to bytes, and back."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Codec(NamedTuple):
    """How a float32 vector crosses the wire.

    Attributes:
        block: vectors come in multiples of this many entries (the exchange pads with zeros).
        size: the bytes of the message for n entries.
        encode: `(x float32 [n], key) -> uint8 [size(n)]`. The key is for codecs that round at random.
        decode: `(uint8 [size(n)], n) -> float32 [n]`.
    """

    block: int
    size: Callable[[int], int]
    encode: Callable[[jax.Array, jax.Array], jax.Array]
    decode: Callable[[jax.Array, int], jax.Array]


LANES = 128
"""Messages are padded to a multiple of this many bytes: a TPU sends an all-gather of any other size as a padded
all-reduce.
"""


def padded(n: int, to: int) -> int:
    """The least multiple of `to` that is `n` or more.

    >>> padded(260, 128)
    384
    """
    return -(-n // to) * to
