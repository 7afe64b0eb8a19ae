"""MATCHA: a random part of a graph in each round, so that it sends less (Wang et al. 2019, arXiv 1905.09435)."""

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.kinds import graph
from jaxdist.graphs.graph import Graph, Round, matrix
from jaxdist.graphs.undirected import Edge, matchings_of


@graph(paper='Wang et al. 2019, MATCHA, arXiv 1905.09435', examples={'matchings(of=ring(), budget=0.5)': ()})
def matchings(of: Graph, budget: float, rounds: int = 16, seed: int = 0) -> Graph:
    """The matchings of a graph, each of which takes part in a round with probability `budget`.

    M(t) = I - a sum of the Laplacians of the matchings that take part, with the `a` that mixes best over the rounds
    that were drawn. Probabilities are equal; the paper optimises them for each matching.

    Args:
        of: the graph, undirected and of one round.
        budget: the share of its messages that is sent, on average.
        rounds: the rounds that are drawn; then they begin anew.
        seed: the seed of the draws.

    Raises:
        InputError: `budget` is not above 0 and at most 1, `rounds` is below 1, or the graph has several rounds.

    >>> from jaxdist.graphs.circulant import ring
    >>> len(matchings(of=ring(), budget=0.5).rounds(4))
    16
    """
    if not 0 < budget <= 1:
        raise InputError(f'matchings: budget={budget} must be above 0, and at most 1')
    if rounds < 1:
        raise InputError(f'matchings: rounds={rounds} must be 1 or more')
    name = f'matchings(of={of.name}, budget={budget}, rounds={rounds}, seed={seed})'

    def drawn(workers: int) -> tuple[Round, ...]:
        base = of.rounds(workers)
        if len(base) > 1:
            raise InputError(f'matchings: {of.name} has several rounds already: take a graph of one')
        if not np.allclose(matrix(base[0]), matrix(base[0]).T):
            raise InputError(f'matchings: in {of.name} workers do not hear each other: take an undirected graph')
        joined = np.argwhere(np.triu(matrix(base[0]), 1))
        parts = matchings_of([(int(i), int(j)) for i, j in joined])
        takes = np.random.default_rng([seed, workers]).random((rounds, len(parts))) < budget
        chosen = [[part for part, taken in zip(parts, row, strict=True) if taken] for row in takes]
        laplacians = np.stack([_laplacian(workers, each) for each in chosen])
        best = min(np.linspace(0.02, 1, 50), key=lambda a: _spread(np.eye(workers) - a * laplacians))
        return tuple(_round(workers, each, float(best)) for each in chosen)

    return Graph(name, drawn)


def _laplacian(workers: int, parts: list[list[Edge]]) -> np.ndarray:
    total = np.zeros((workers, workers))
    for i, j in [pair for part in parts for pair in part]:
        total[[i, j], [i, j]] += 1
        total[[i, j], [j, i]] -= 1
    return total


def _spread(mixing: np.ndarray) -> float:
    """The largest part of what differs that a round leaves on average, squared; without negative weights."""
    w = mixing.shape[-1]
    if mixing.min() < 0:
        return np.inf
    return float(np.linalg.norm((np.swapaxes(mixing, 1, 2) @ mixing).mean(axis=0) - 1 / w, 2))


def _round(workers: int, parts: list[list[Edge]], weight: float) -> Round:
    partners = [{**dict(part), **{j: i for i, j in part}} for part in parts]
    sources = tuple(tuple(each.get(i) for i in range(workers)) for each in partners)
    weights = tuple(tuple(weight if i in each else 0.0 for i in range(workers)) for each in partners)
    return Round(tuple(1 - sum(each[i] for each in weights) for i in range(workers)), sources, weights)
