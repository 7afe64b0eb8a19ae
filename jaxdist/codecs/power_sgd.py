"""PowerSGD: low-rank approximation by one power iteration per mean (Vogels et al. 2019, arXiv 1905.13727)."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

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
    """A mean as a product P Q^T of rank `rank`: all-reduces of rank (n + m) numbers in place of n m, per matrix [n, m].

    The power iteration starts from the last mean's Q (warm start), so the approximation of a slowly changing gradient
    improves from mean to mean; use `feedback=True` for the compression error. Columns of Q that a gradient of zeros, or
    of low rank, leaves without direction are drawn anew. A tensor of more dimensions is reshaped to the matrix with the
    smallest factors, its first dimensions by its last. Tensors of fewer than two dimensions, and those whose factors
    would not be smaller, are averaged exactly. Each shard of a sharded tensor is a separate matrix.

    Args:
        rank: the rank of the approximation; the paper uses 2 for its convolutional net and 4 for its LSTM.

    Raises:
        InputError: the rank is below 1.

    >>> codecs = power_sgd(rank=1).pick([('w', (8, 8)), ('b', (8,))])
    >>> [each is None for each in codecs], codecs[0].sends(2, [(8, 8)])
    ([False, True], Fraction(64, 1))
    """
    if rank < 1:
        raise InputError(f'power_sgd: rank={rank} must be 1 or more')

    def start(shape: Shape, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (_sides(shape)[1], rank), jnp.float32)

    def mean(
        tensors: list[jax.Array], states: list[Any], axis: str
    ) -> tuple[list[jax.Array], list[jax.Array], list[Any]]:
        matrices, states = [x.reshape(_sides(x.shape)) for x in tensors], _revived(states)
        ps = _mean([_times(m, q) for m, q in zip(matrices, states, strict=True)], axis)
        ps = [jnp.linalg.qr(p)[0] for p in ps]
        qs = _mean([_times(m.T, p) for m, p in zip(matrices, ps, strict=True)], axis)
        means = [_times(p, q.T).reshape(x.shape) for p, q, x in zip(ps, qs, tensors, strict=True)]
        return means, [x - m for x, m in zip(tensors, means, strict=True)], qs

    def sends(workers: int, shapes: Sequence[Shape]) -> Fraction:
        return Fraction(2 * (workers - 1), workers) * 4 * sum(rank * sum(_sides(shape)) for shape in shapes)

    reducer = Reducer(start, mean, sends)

    def pick(tensors: Sequence[tuple[str, Shape]]) -> list[Any]:
        return [reducer if len(s) > 1 and rank * sum(_sides(s)) < math.prod(s) else None for _, s in tensors]

    return PerTensor(pick)


def _revived(qs: list[jax.Array]) -> list[jax.Array]:
    """The factors [m, rank] with random numbers for columns that are zero, or no more than noise beside the largest.

    A gradient of zeros or of low rank leaves such columns; every later product with them would be zero too.
    """
    sizes = [jnp.max(jnp.abs(q), axis=0) for q in qs]
    tops = [jnp.max(size) for size in sizes]
    alive = [size > jnp.finfo(jnp.float32).eps * top for size, top in zip(sizes, tops, strict=True)]

    def redraw() -> list[jax.Array]:
        draws = unflatten(jax.random.normal(jax.random.key(0), (sum(q.size for q in qs),)), qs)  # as on all workers
        scales = [jnp.where(top > 0, top, 1) for top in tops]
        return [jnp.where(a, q, draw * s) for a, q, draw, s in zip(alive, qs, draws, scales, strict=True)]

    return lax.cond(jnp.all(jnp.concatenate(alive)), lambda: qs, redraw)


def _mean(factors: list[jax.Array], axis: str) -> list[jax.Array]:
    """The mean over workers of each factor, with one all-reduce for all of them."""
    return unflatten(collectives.pmean(flatten(factors), axis), factors)


def _sides(shape: Shape) -> Shape:
    """Rows and columns of the matrix to which a tensor of this shape is reshaped."""
    splits = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(splits, key=sum)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    # A TPU multiplies in bfloat16 by default, which is too coarse for an orthonormal basis.
    return jnp.matmul(a, b, precision='highest')
