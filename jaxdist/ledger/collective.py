"""One collective, and the formulas for the bytes that it sends.

The formulas are the bandwidth-optimal ones, of Thakur, Rabenseifner and Gropp (2005), "Optimization of
Collective Communication Operations in MPICH".
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdist.core.errors import InputError

Totals = dict[tuple[tuple[str, ...], str, bool], Fraction]
"""(mesh axes, dtype, whether in a conditional branch) -> bytes sent."""


@dataclass(frozen=True)
class Branch:
    """One branch of one conditional.

    Attributes:
        cond: the path of the conditional: in a traced program the positions of the equations that lead to it,
            such as `0.7`; in a compiled one the names of the instructions.
        index: which of its branches; of `lax.cond`, 1 is the one taken when the predicate is true. A loop that
            runs once or never is a conditional too, with its body as branch 1.
    """

    cond: str
    index: int


RAGGED = 'ragged_all_to_all'
"""The kind of collective whose bytes depend on data."""


class Collective(NamedTuple):
    """One collective.

    Attributes:
        axes: the mesh axes that it communicates over, in the order of the mesh.
        kind: `all_reduce`, `all_gather`, `all_to_all`, `ragged_all_to_all`, `permute` or `reduce_scatter`.
        dtype: of the numbers sent, such as `float32`, `uint8`, `bool`.
        sent: bytes that one device sends when it runs once; the mean over devices where they differ. Of a
            `ragged_all_to_all` those of all rows of its operand, sent evenly.
        times: how often it runs if every branch around it is taken, or None if that, or what it sends, depends on data.
        branch: the conditional branches that it is in, the outermost first; () if it always runs.
    """

    axes: tuple[str, ...]
    kind: str
    dtype: str
    sent: Fraction
    times: int | None = 1
    branch: tuple[Branch, ...] = ()


def bits(dtype: str) -> int:
    """Bits that one number of a dtype takes when sent; a bool takes a byte.

    >>> [bits(name) for name in ('float32', 'bfloat16', 'int4', 'float8_e4m3fn', 'bool')]
    [32, 16, 4, 8, 8]
    """
    width = re.search(r'\d+', dtype)
    return int(width.group()) if width else 8


def array_size(x: Any) -> tuple[int, str]:
    """How many numbers an array, or its shape and dtype, has, and of which dtype; a random key counts as its data.

    >>> array_size(np.zeros((2, 3), 'int8')), array_size(jax.random.key(0))
    ((6, 'int8'), (2, 'uint32'))
    """
    count, dtype = math.prod(x.shape), x.dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
        count, dtype = count * math.prod(data.shape), data.dtype
    return count, np.dtype(dtype).name


def sent(kind: str, payload: Fraction, groups: Sequence[int], devices: int) -> Fraction:
    """Bytes that one device sends in a collective other than a permutation, as a mean over all devices.

    Args:
        kind: see `Collective`.
        payload: bytes of one device's input.
        groups: the sizes of the groups of devices that communicate.
        devices: how many devices there are; those in no group send nothing.

    >>> [int(sent(kind, Fraction(80), [8], 8)) for kind in ('all_reduce', 'reduce_scatter', 'all_gather')]
    [140, 70, 560]
    """

    def factor(n: int) -> Fraction:
        if kind == 'all_gather':
            return Fraction(n - 1)
        return Fraction(n - 1, n) * (2 if kind == 'all_reduce' else 1)

    return sum((n * factor(n) for n in groups), Fraction(0)) * payload / devices


def axes_spanned(groups: Iterable[Sequence[int]], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the members of any group differ.

    Groups that are smaller than an axis count on that axis; groups that follow no axis count on every axis along
    which their members differ.

    Args:
        groups: positions in the mesh, counted with the last axis fastest.
        sizes: the mesh's axes and their sizes.

    >>> axes_spanned([(0, 2), (1, 3)], {'a': 2, 'b': 2}), axes_spanned([(0, 3)], {'a': 2, 'b': 2})
    (('a',), ('a', 'b'))
    """
    differ = np.zeros(len(sizes), bool)
    for group in groups:
        positions = np.array(np.unravel_index(np.asarray(group, int), tuple(sizes.values())))
        differ |= (positions != positions[:, :1]).any(axis=1)
    return tuple(name for name, differs in zip(sizes, differ, strict=True) if differs)


def totals(collectives: Iterable[Collective]) -> Totals:
    """Bytes that one device sends if every branch is taken, by axes, dtype and whether in a branch.

    A traced program and the compiled one have these in common: the compiler may merge or split collectives.

    Raises:
        InputError: a collective is in a loop whose length depends on data.

    >>> totals([Collective(('workers',), 'all_gather', 'int8', Fraction(7), times=3)])
    {(('workers',), 'int8', False): Fraction(21, 1)}
    """
    sums: Totals = {}
    for collective in collectives:
        if collective.times is None:
            raise InputError(
                f'{collective.kind} of {collective.dtype} over {collective.axes} is in a loop whose length depends on '
                'data: its bytes cannot be summed; use a scan of fixed length'
            )
        key = (collective.axes, collective.dtype, bool(collective.branch))
        sums[key] = sums.get(key, Fraction(0)) + collective.sent * collective.times
    return sums
