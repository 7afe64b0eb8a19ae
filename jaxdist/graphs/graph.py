"""Communication graphs between workers: who sends to whom in each round, and with which weights values are mixed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdist.core.errors import InputError


class Round(NamedTuple):
    """One communication round: worker i gets `own[i]` times its value, and the weighted values that it is sent.

    Attributes:
        own: the weight of each worker's own value, [W].
        sources: for each permutation that is sent, whose value each worker gets, [W]; None for nobody's.
        weights: for each permutation, the weight of what each worker gets, [W]; 0 for nobody's.
    """

    own: tuple[float, ...]
    sources: tuple[tuple[int | None, ...], ...]
    weights: tuple[tuple[float, ...], ...]


class Graph(NamedTuple):
    """A communication graph, for any number of workers that it fits.

    Attributes:
        name: its call, as `ring()`.
        rounds: `workers -> rounds`, which are taken in turn.
    """

    name: str
    rounds: Callable[[int], tuple[Round, ...]]


def matrix(each: Round) -> np.ndarray:
    """The mixing matrix M of a round, [W, W]: worker i gets the sum over j of M[i, j] times the value of worker j.

    >>> matrix(Round((0.5, 0.5), ((1, 0),), ((0.5, 0.5),)))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    mixing = np.diag(np.array(each.own, float))
    for sources, weights in zip(each.sources, each.weights, strict=True):
        for worker, (source, weight) in enumerate(zip(sources, weights, strict=True)):
            if source is not None:
                mixing[worker, source] += weight
    return mixing


def degree(rounds: tuple[Round, ...]) -> float:
    """Messages that a worker sends in a round, on average over workers and rounds; none to itself.

    >>> degree((Round((0.5, 0.5), ((1, 0),), ((0.5, 0.5),)),))
    1.0
    """
    sent = [
        sum(source not in (None, worker) for sources in each.sources for worker, source in enumerate(sources))
        / len(each.own)
        for each in rounds
    ]
    return float(np.mean(sent))


def message_text(rounds: tuple[Round, ...]) -> str:
    """`degree` in words.

    >>> message_text((Round((0.5, 0.5), ((1, 0),), ((0.5, 0.5),)),))
    '1 message a round'
    """
    turns = f', {len(rounds)} rounds in turn' if len(rounds) > 1 else ''
    sent = degree(rounds)
    return f'{sent:.3g} message{"s" * (sent != 1)} a round{turns}'


def spectral_gap(rounds: tuple[Round, ...]) -> float:
    """1 minus the factor by which a round brings workers closer to their mean: of a cycle, a geometric mean.

    >>> float(round(spectral_gap((Round((0.0, 0.0), ((1, 0),), ((1.0, 1.0),)),)), 3))  # they only swap
    0.0
    """
    product = functools.reduce(lambda before, each: matrix(each) @ before, rounds, np.eye(len(rounds[0].own)))
    return float(1 - np.linalg.norm(product - 1 / len(product), 2) ** (1 / len(rounds)))


def build(graph: Graph, workers: int, *, symmetric: bool = True) -> tuple[Round, ...]:
    """The rounds of a graph for this number of workers, checked.

    Args:
        graph: the graph.
        workers: the number of workers W.
        symmetric: whether what workers get must add up to one, not only what each gives: without it plain mixing does
            not lead to the mean.

    Raises:
        InputError: weights do not add up to one, or some workers are not reached.

    >>> from jaxdist.graphs.circulant import ring
    >>> len(build(ring(), 8)[0].sources)
    2
    """
    rounds = graph.rounds(workers)
    for each in rounds:
        _check_permutations(graph.name, each)
        mixing = matrix(each)
        if mixing.shape != (workers, workers):
            raise InputError(f'{graph.name} has a round of {len(mixing)} workers, and there are {workers}')
        if mixing.min() < 0:
            raise InputError(f'{graph.name}: worker {int(np.argwhere(mixing < 0)[0][0])} has a negative weight')
        _check_sums(graph.name, mixing.sum(axis=0), 'gives away parts that add up to')
        if symmetric:
            hint = '; push_sum takes such a graph'
            _check_sums(graph.name, mixing.sum(axis=1), 'mixes with weights that add up to', hint)
    _check_connected(graph.name, rounds)
    return rounds


def reaches(joined: np.ndarray) -> np.ndarray:
    """Whether what worker j has comes to worker i at last, bools [W, W], if it comes at once where `joined` is true.

    >>> reaches(np.array([[True, False], [True, True]])).tolist()
    [[True, False], [True, True]]
    """
    known = joined | np.eye(len(joined), dtype=bool)
    for _ in range(max(len(joined) - 1, 1).bit_length()):  # twice as far in each
        known = known.astype(np.float32) @ known.astype(np.float32) > 0
    return known


def gap_text(rounds: tuple[Round, ...]) -> str:
    """The spectral gap in words; '' where plain mixing does not lead to the mean, and so has none.

    >>> gap_text((Round((0.5, 0.5), ((1, 0),), ((0.5, 0.5),)),))
    'spectral gap 1'
    """
    sums = np.concatenate([matrix(each).sum(axis=1) for each in rounds])
    return f'spectral gap {spectral_gap(rounds):.3g}' if np.allclose(sums, 1) else ''


def _check_permutations(name: str, each: Round) -> None:
    for sources, weights in zip(each.sources, each.weights, strict=True):
        heard = [source for source in sources if source is not None]
        if twice := [source for source in heard if heard.count(source) > 1]:
            raise InputError(f'{name}: worker {twice[0]} is twice in one permutation: send to one worker in each')
        for worker, (source, weight) in enumerate(zip(sources, weights, strict=True)):
            if source is None and weight:
                raise InputError(f'{name}: worker {worker} hears nobody in a permutation, with the weight {weight:.6g}')


def _check_sums(name: str, sums: np.ndarray, what: str, hint: str = '') -> None:
    wrong = np.flatnonzero(np.abs(sums - 1) > 1e-9)
    if len(wrong):
        raise InputError(f'{name}: worker {wrong[0]} {what} {sums[wrong[0]]:.6g}, and it must be 1{hint}')


def _check_connected(name: str, rounds: tuple[Round, ...]) -> None:
    missed = np.argwhere(~reaches(np.sum([matrix(each) for each in rounds], axis=0) > 0))
    if len(missed):
        to, start = map(int, missed[0])
        raise InputError(f'{name} is not connected: what worker {start} has never comes to worker {to}')
