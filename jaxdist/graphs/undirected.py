"""Graphs of edges, with Metropolis weights: 1 / (1 + the larger degree of both ends) (Xiao and Boyd 2004)."""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.kinds import graph
from jaxdist.graphs.graph import Graph, Round, reaches

Edge = tuple[int, int]


@graph(paper='Xiao and Boyd 2004', examples={'edges(((0, 1), (1, 2), (2, 3)))': ()})
def edges(pairs: Sequence[Edge], directed: bool = False) -> Graph:
    """The graph of these edges.

    Args:
        pairs: edges, as ((0, 1), (1, 2)).
        directed: whether the first of a pair sends to the second, and not the other way round. A worker then keeps an
            equal part for each that it sends to and itself, as `push_sum` needs it.

    Raises:
        InputError: a pair is not one of two different workers, or is there twice.

    >>> edges(((0, 1), (1, 2))).rounds(3)[0].sources
    ((1, 0, None), (None, 2, 1))
    """
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise InputError(f'edges: {pairs!r} must be pairs of workers, as in ((0, 1), (1, 2))')
    seen = [(i, j) if directed else (min(i, j), max(i, j)) for i, j in pairs]
    for pair in seen:
        if pair[0] == pair[1] or seen.count(pair) > 1:
            raise InputError(f'edges: {pair} must join two workers, and be there once')
    name = f'edges({tuple(map(tuple, pairs))}{", directed=True" if directed else ""})'

    def rounds(workers: int) -> tuple[Round, ...]:
        outside = [pair for pair in seen if not all(0 <= end < workers for end in pair)]
        if outside:
            raise InputError(f'{name}: {outside[0]} is not of the workers 0 to {workers - 1}')
        return (_directed if directed else metropolis)(workers, seen)

    return Graph(name, rounds)


@graph(paper='none', examples={'star()': ()})
def star() -> Graph:
    """Worker 0 hears all others, one after the other: W - 1 messages a round. It is here to compare with.

    >>> star().rounds(3)[0].sources
    ((1, 0, None), (2, None, 0))
    """
    return Graph('star()', lambda workers: metropolis(workers, [(0, i) for i in range(1, workers)]))


@graph(paper='none', examples={'torus(rows=2, columns=2)': ()})
def torus(rows: int, columns: int) -> Graph:
    """A grid whose ends are joined: each worker hears those beside, above and below it.

    Args:
        rows, columns: the number of workers is their product.

    Raises:
        InputError: one is below 1, or there are other numbers of workers.

    >>> torus(rows=2, columns=2).rounds(4)[0].sources
    ((1, 0, 3, 2), (2, 3, 0, 1))
    """
    if min(rows, columns) < 1:
        raise InputError(f'torus: rows={rows} and columns={columns} must be 1 or more')
    name = f'torus(rows={rows}, columns={columns})'

    def of(workers: int) -> tuple[Round, ...]:
        if rows * columns != workers:
            raise InputError(f'{name} is for {rows * columns} workers, and there are {workers}')
        place = lambda row, column: row % rows * columns + column % columns  # noqa: E731
        places = [(row, column) for row in range(rows) for column in range(columns)]
        beside = [(place(*at), place(at[0], at[1] + 1)) for at in places]
        below = [(place(*at), place(at[0] + 1, at[1])) for at in places]
        return metropolis(workers, [*beside, *below])

    return Graph(name, of)


@graph(paper='none', examples={'hypercube()': ()})
def hypercube() -> Graph:
    """Workers whose numbers differ in one binary digit hear each other: log2 W neighbours.

    Raises:
        InputError: the number of workers is no power of two.

    >>> hypercube().rounds(4)[0].sources
    ((1, 0, 3, 2), (2, 3, 0, 1))
    """

    def rounds(workers: int) -> tuple[Round, ...]:
        if workers & (workers - 1):
            raise InputError(f'hypercube() takes a power of two of workers, and there are {workers}')
        digits = [2**k for k in range(workers.bit_length() - 1)]
        return metropolis(workers, [(i, i ^ digit) for digit in digits for i in range(workers)])

    return Graph('hypercube()', rounds)


@graph(paper='Erdos and Renyi 1959', examples={'erdos_renyi(p=0.7)': ()})
def erdos_renyi(p: float, seed: int = 0) -> Graph:
    """Any two workers are joined with probability `p`; drawn again until the graph is connected.

    Args:
        p: the probability.
        seed: the seed of the draws.

    Raises:
        InputError: `p` is not above 0 and at most 1, or no graph of a thousand is connected.

    >>> len(erdos_renyi(p=1.0).rounds(4)[0].sources)
    3
    """
    if not 0 < p <= 1:
        raise InputError(f'erdos_renyi: p={p} must be above 0, and at most 1')

    def rounds(workers: int) -> tuple[Round, ...]:
        generator = np.random.default_rng([seed, workers])
        for _ in range(1000):
            drawn = np.triu(generator.random((workers, workers)) < p, 1)
            if reaches(drawn | drawn.T).all():
                return metropolis(workers, [(int(i), int(j)) for i, j in np.argwhere(drawn)])
        raise InputError(f'erdos_renyi: no graph of a thousand with p={p} connects {workers} workers: take a larger p')

    return Graph(f'erdos_renyi(p={p}, seed={seed})', rounds)


def metropolis(workers: int, pairs: Iterable[Edge]) -> tuple[Round, ...]:
    """A round of Metropolis weights; edges are sent in matchings, in which each worker has one partner at most.

    >>> metropolis(3, [(0, 1), (1, 2)])[0].own
    (0.666..., 0.333..., 0.666...)
    """
    different = sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})
    ends = np.bincount(np.array(different, int).ravel(), minlength=workers)
    matched = [{**dict(each), **{j: i for i, j in each}} for each in matchings_of(different)]
    weight = lambda i, j: 1 / (1 + int(max(ends[i], ends[j])))  # noqa: E731
    sources = tuple(tuple(partner.get(i) for i in range(workers)) for partner in matched)
    weights = tuple(
        tuple(weight(i, partner[i]) if i in partner else 0.0 for i in range(workers)) for partner in matched
    )
    return (Round(tuple(1 - sum(each[i] for each in weights) for i in range(workers)), sources, weights),)


def matchings_of(pairs: Iterable[Edge]) -> list[list[Edge]]:
    """The edges divided into matchings, greedily: at most twice the largest degree, less one.

    >>> matchings_of([(0, 1), (1, 2), (2, 3)])
    [[(0, 1), (2, 3)], [(1, 2)]]
    """
    found: list[tuple[set[int], list[Edge]]] = []
    for i, j in pairs:
        taken, matching = next((each for each in found if not {i, j} & each[0]), (set(), []))
        if not matching:
            found.append((taken, matching))
        taken |= {i, j}
        matching.append((i, j))
    return [matching for _, matching in found]


def _directed(workers: int, pairs: Sequence[Edge]) -> tuple[Round, ...]:
    """Each sender keeps the same part for itself as it gives to each that it sends to; sent in partial permutations."""
    out = np.bincount(np.array([i for i, _ in pairs], int), minlength=workers)
    found: list[dict[int, int]] = []  # by target
    for i, j in pairs:
        free = next((each for each in found if j not in each and i not in each.values()), None)
        if free is None:
            found.append(free := {})
        free[j] = i
    sources = tuple(tuple(each.get(target) for target in range(workers)) for each in found)
    weights = tuple(
        tuple(1 / (1 + int(out[each[target]])) if target in each else 0.0 for target in range(workers))
        for each in found
    )
    return (Round(tuple(1 / (1 + int(n)) for n in out), sources, weights),)
