"""Graphs in which every worker hears those at the same distances before it: circulants, with equal weights."""

from collections.abc import Sequence

from jaxdist.core.kinds import graph
from jaxdist.graphs.graph import Graph, Round


@graph(paper='Lian et al. 2017, D-PSGD, arXiv 1705.09056', examples={'ring()': ()})
def ring() -> Graph:
    """Each worker hears the one before and the one after it. Its gap falls with the square of the number of workers.

    >>> ring().rounds(4)[0].sources
    ((3, 0, 1, 2), (1, 2, 3, 0))
    """
    return Graph('ring()', lambda workers: (_shifted(workers, (1, -1)),))


@graph(
    paper='Assran et al. 2019, SGP, arXiv 1811.10792; Ying et al. 2021, arXiv 2110.13363',
    examples={'static_exponential()': ()},
)
def static_exponential() -> Graph:
    """Each worker hears those 1, 2, 4, ... before it: about log2 W neighbours, and a gap of about 2 / log2 W.

    >>> static_exponential().rounds(4)[0].sources
    ((3, 0, 1, 2), (2, 3, 0, 1))
    """
    return Graph('static_exponential()', lambda workers: (_shifted(workers, _powers(workers)),))


@graph(
    paper='Assran et al. 2019, SGP, arXiv 1811.10792; Ying et al. 2021, arXiv 2110.13363',
    examples={'one_peer_exponential()': ()},
)
def one_peer_exponential() -> Graph:
    """Each worker hears one at a time, in turn 1, 2, 4, ... before it: one message a round.

    With a power of two of workers a cycle of log2 W rounds ends in the exact mean.

    >>> [each.sources for each in one_peer_exponential().rounds(4)]
    [((3, 0, 1, 2),), ((2, 3, 0, 1),)]
    """

    def rounds(workers: int) -> tuple[Round, ...]:
        return tuple(_shifted(workers, (power,)) for power in _powers(workers)) or (_shifted(workers, ()),)

    return Graph('one_peer_exponential()', rounds)


@graph(paper='none', examples={'complete()': ()})
def complete() -> Graph:
    """Each worker hears all others: the exact mean in every round, for which `average` sends fewer bytes.

    >>> len(complete().rounds(4)[0].sources)
    3
    """
    return Graph('complete()', lambda workers: (_shifted(workers, range(1, workers)),))


def _powers(workers: int) -> list[int]:
    return [2**k for k in range((workers - 1).bit_length())]


def _shifted(workers: int, shifts: Sequence[int]) -> Round:
    """Each worker hears those `shift` before it, of the distances that differ and are not 0."""
    distances = list(dict.fromkeys(shift % workers for shift in shifts if shift % workers))
    weight = 1 / (len(distances) + 1)
    return Round(
        own=(1 - weight * len(distances),) * workers,
        sources=tuple(tuple((i - distance) % workers for i in range(workers)) for distance in distances),
        weights=((weight,) * workers,) * len(distances),
    )
