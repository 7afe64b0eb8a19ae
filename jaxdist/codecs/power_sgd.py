"""Matrices as products of two narrow ones, by one power iteration a step (Vogels et al. 2019, arXiv 1905.13727)."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist import laws
from jaxdist.codecs.codec import PerTensor, Reducer, Shape
from jaxdist.core import collectives
from jaxdist.core.bits import flatten, unflatten
from jaxdist.core.errors import InputError
from jaxdist.core.registry import codec


@codec(
    paper='Vogels et al. 2019, PowerSGD, arXiv 1905.13727, algorithm 1',
    examples={
        'power_sgd(rank=1)': (laws.exact_up_to_rank(1), laws.contracts(0.02), laws.idempotent()),
        'power_sgd(rank=4)': (laws.exact_up_to_rank(4), laws.contracts(0.1), laws.idempotent()),
    },
)
def power_sgd(rank: int = 2) -> PerTensor:
    """Two all-reduces of rank (n + m) numbers in place of one of n m, for each tensor seen as a matrix [n, m].

    The first factor of a step starts from the last one's second (warm start), so that a gradient which turns slowly is
    approached better and better; what is left out is for `feedback=True`. A tensor of more dims is seen as the matrix
    whose factors are smallest: its first dims by its last. Tensors of fewer than two dims, and those whose factors
    would be no smaller than themselves, are averaged exactly. A tensor that is cut over devices is a matrix on each.

    Args:
        rank: of the approximation; 2 in the paper for its convolutional net, 4 for its LSTM.

    Raises:
        InputError: a rank below 1.

    >>> average = power_sgd(rank=1).pick([('w', (8, 8)), ('b', (8,))])
    >>> [each is None for each in average], average[0].sends(2, [(8, 8)])
    ([False, True], Fraction(64, 1))
    """
    if rank < 1:
        raise InputError(f'power_sgd: rank={rank} must be 1 or more')

    def start(shape: Shape, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (_sides(shape)[1], rank), jnp.float32)

    def mean(
        tensors: list[jax.Array], remembered: list[Any], axis: str
    ) -> tuple[list[jax.Array], list[jax.Array], list[Any]]:
        matrices = [x.reshape(_sides(x.shape)) for x in tensors]
        lefts = _mean([_times(m, q) for m, q in zip(matrices, remembered, strict=True)], axis)
        lefts = [jnp.linalg.qr(p)[0] for p in lefts]
        rights = _mean([_times(m.T, p) for m, p in zip(matrices, lefts, strict=True)], axis)
        means = [_times(p, q.T).reshape(x.shape) for p, q, x in zip(lefts, rights, tensors, strict=True)]
        return means, [x - m for x, m in zip(tensors, means, strict=True)], rights

    def sends(workers: int, shapes: Sequence[Shape]) -> Fraction:
        return Fraction(2 * (workers - 1), workers) * 4 * sum(rank * sum(_sides(shape)) for shape in shapes)

    average = Reducer(start, mean, sends)

    def pick(tensors: Sequence[tuple[str, Shape]]) -> list[Any]:
        return [average if len(s) > 1 and rank * sum(_sides(s)) < math.prod(s) else None for _, s in tensors]

    return PerTensor(pick)


def _mean(factors: list[jax.Array], axis: str) -> list[jax.Array]:
    """The mean of each over workers, all in one message."""
    return unflatten(collectives.pmean(flatten(factors), axis), factors)


def _sides(shape: Shape) -> Shape:
    """Rows and columns of the matrix that a tensor of this shape is seen as."""
    splits = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(splits, key=sum)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision='highest')
