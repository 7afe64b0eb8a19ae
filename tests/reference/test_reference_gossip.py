"""Gossip matches its reference implementations, simulated and on a mesh.

The reference implementations were written from the papers' rules by somebody who had not seen the code; their graphs
are dense matrices.
"""

import numpy as np
import numpy_gossip as reference
import numpy_training
import pytest
from numpy_local import top_k
from reference_fixtures import PLANE
from reference_runs import Case, check_matches, unambiguous_run

from jaxdist import line
from jaxdist.core.registry import graphs
from jaxdist.graphs.graph import Graph, degree, matrix, spectral_gap

DIRECTED = [(0, 1), (1, 2), (2, 0), (0, 2)]
PATH = [(i, i + 1) for i in range(7)]
GRAPHS = {
    'ring()': lambda w: reference.ring(w),
    'static_exponential()': lambda w: [m.T for m in reference.exponential(w)],  # it hears those before it
    'one_peer_exponential()': lambda w: [m.T for m in reference.one_peer(w)],
    'complete()': lambda w: reference.complete(w),
    'star()': lambda w: reference.star(w),
    'torus(rows=2, columns=4)': lambda w: reference.torus(2, 4),
    'hypercube()': lambda w: reference.hypercube(w),
    f'edges({tuple(PATH)})': lambda w: reference.metropolis(w, PATH),
}


def graph(text: str) -> Graph:
    built = line.build_value(text)
    assert isinstance(built, Graph)
    return built


@pytest.mark.parametrize('text', GRAPHS)
def test_graphs_are_the_references_matrices(text: str) -> None:
    rounds, expected = graph(text).rounds(8), GRAPHS[text](8)
    assert len(rounds) == len(expected)
    for each, mixing in zip(rounds, expected, strict=True):
        np.testing.assert_allclose(matrix(each), mixing, atol=1e-15)
    assert degree(rounds) == np.mean([np.count_nonzero(m - np.diag(np.diag(m))) / 8 for m in expected])
    assert spectral_gap(rounds) == pytest.approx(reference.spectral_gap(expected))


@pytest.mark.parametrize('text, kept', [('erdos_renyi(p=0.4, seed=3)', 1), ('matchings(of=ring(), budget=0.5)', 16)])
def test_random_graphs_are_of_edges(text: str, kept: int) -> None:
    rounds = graph(text).rounds(8)
    assert len(rounds) == kept
    for each in rounds:
        mixing = matrix(each)
        np.testing.assert_allclose([mixing.sum(axis=0), mixing.sum(axis=1)], np.ones((2, 8)), atol=1e-12)
        np.testing.assert_array_equal(mixing, mixing.T)
    if kept == 1:
        pairs = [(int(i), int(j)) for i, j in np.argwhere(np.triu(matrix(rounds[0]), 1))]
        np.testing.assert_allclose(matrix(rounds[0]), reference.metropolis(8, pairs)[0], atol=1e-15)
    else:
        assert 0.3 * 2 < degree(rounds) < 0.7 * 2  # half of a ring's two messages
        assert 0 < spectral_gap(rounds) < spectral_gap(graph('ring()').rounds(8))


def test_every_graph_is_compared() -> None:
    compared = {text.partition('(')[0] for text in GRAPHS} | {'erdos_renyi', 'matchings'}
    assert compared == set(graphs())


SGD = 'sgd(0.1) | '
ONE = 'one_peer_exponential()'
CASES = {
    'gossip': Case(SGD + 'gossip()', lambda w: [numpy_training.Sgd(0.1), reference.Gossip(reference.ring(w))]),
    'gossip-beside': Case(
        f'sgd(0.1, momentum=0.9) | gossip(graph={ONE}, adapt_first=False)',
        lambda w: [numpy_training.Sgd(0.1, 0.9), reference.Gossip(GRAPHS[ONE](w), adapt_first=False)],
    ),
    'gossip-local': Case(
        f'adamw(0.03, weight_decay=0.1) | gossip(graph={ONE}, every=3)',
        lambda w: [numpy_training.AdamW(0.03, 0.1), reference.Gossip(GRAPHS[ONE](w), every=3)],
    ),
    'tracking': Case(
        f'track(graph={ONE}) | sgd(0.1) | gossip(graph={ONE}, adapt_first=False)',
        lambda w: [
            reference.Tracking(GRAPHS[ONE](w)),
            numpy_training.Sgd(0.1),
            reference.Gossip(GRAPHS[ONE](w), adapt_first=False),
        ],
    ),
    'exact-diffusion': Case(
        SGD + 'exact_diffusion()',
        lambda w: [numpy_training.Sgd(0.1), reference.ExactDiffusion(reference.ring(w)[0])],
    ),
    'd2': Case(
        SGD + 'exact_diffusion(graph=star(), lazy=False)',
        lambda w: [numpy_training.Sgd(0.1), reference.ExactDiffusion(reference.star(w)[0], lazy=False)],
    ),
    'extra': Case(SGD + 'extra()', lambda w: [numpy_training.Sgd(0.1), reference.Extra(reference.ring(w)[0])]),
    'push-sum': Case(
        SGD + 'push_sum(graph=edges({directed}, directed=True))',
        lambda w: [numpy_training.Sgd(0.1), reference.PushSum(reference.directed(w, directed(w)))],
    ),
    'quasi-global': Case(
        SGD + 'quasi_global(momentum=0.8) | gossip()',
        lambda w: [reference.QuasiGlobal(0.1, 0.8, 0.8), reference.Gossip(reference.ring(w))],
    ),
    'choco': Case(
        SGD + 'choco(codec=top_k(k=2, block=8), gamma=0.3, every=2)',
        lambda w: [numpy_training.Sgd(0.1), reference.Choco(reference.ring(w), top_k(2, 8), 0.3, every=2)],
        PLANE,
        coded=True,
    ),
    'deepsqueeze': Case(
        SGD + 'gossip(codec=top_k(k=2, block=8), feedback=True, gamma=0.5)',
        lambda w: [numpy_training.Sgd(0.1), reference.DeepSqueeze(reference.ring(w), top_k(2, 8), 0.5)],
        PLANE,
        coded=True,
    ),
}
QUICK = ('gossip', 'choco')


def directed(workers: int) -> list[tuple[int, int]]:
    """A ring in one direction, and from worker 0 to all others."""
    return list(dict.fromkeys([(i, (i + 1) % workers) for i in range(workers)] + [(0, i) for i in range(1, workers)]))


SETUPS = [
    pytest.param(*each, id='-'.join(map(str, each)), marks=[pytest.mark.slow] * (each[0] not in QUICK or each[2] != 3))
    for name in CASES
    for each in ((name, 'simulated', 3), (name, 'mesh', 8))
]


@pytest.mark.parametrize('name, place, count', SETUPS)
def test_matches_the_reference(name: str, place: str, count: int) -> None:
    case = CASES[name]
    check_matches(case, place, count, case.line.replace('{directed}', str(tuple(directed(count)))))


@pytest.mark.parametrize('name', CASES)
def test_the_references_workers_diverge(name: str) -> None:
    """Otherwise the comparison would show little."""
    params = unambiguous_run(CASES[name], 8).trajectory.params
    assert np.ptp(params, axis=1).max(1).max() > 1e-2
