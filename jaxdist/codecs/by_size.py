"""A codec for large tensors and another for small ones: most tensors are small, most entries are in large tensors."""

from collections.abc import Sequence
from math import prod

from jaxdist import laws
from jaxdist.codecs.codec import AnyCodec, PerTensor, Shape
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec


@codec(
    paper='Vogels et al. 2019, arXiv 1905.13727, which averages vectors exactly',
    examples={
        'by_size(large=int8(block=64), below=64)': (laws.error_at_most(0.5 / 127), laws.idempotent()),
        'by_size(large=int8(block=64), below=1000000)': (laws.error_at_most(0),),
        'by_size(large=int8(block=64), below=1000000, small=bf16())': (laws.error_at_most(2**-8),),
    },
)
def by_size(large: AnyCodec, below: int = 4096, small: AnyCodec | None = None) -> PerTensor:
    """One codec for tensors of `below` entries or more, and another codec or an exact mean for smaller tensors.

    Biases and normalisation scales are few but sensitive, so exactness costs little. All tensors of one codec share a
    message, so the number of collectives does not grow with the number of layers.

    Args:
        large: the codec of large tensors.
        below: the number of entries from which a tensor is large. Of a sharded tensor, the entries on one device count.
        small: the codec of small tensors; None for an exact mean in float32.

    Raises:
        InputError: `below` is negative.

    >>> from jaxdist.codecs.int8 import int8
    >>> choice = by_size(large=int8(), below=100)
    >>> [codec is None for codec in choice.pick([('w', (10, 10)), ('b', (10,))])]
    [False, True]
    """
    if below < 0:
        raise InputError(f'by_size: below={below} must be 0 or more entries')

    def pick(tensors: Sequence[tuple[str, Shape]]) -> list[AnyCodec | None]:
        return [large if prod(shape) >= below else small for _, shape in tensors]

    return PerTensor(pick)
