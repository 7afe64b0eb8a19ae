"""The reference implementations of gossip have the identities of their papers, on quadratics in float64."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy_gossip import (
    Choco,
    DeepSqueeze,
    ExactDiffusion,
    Extra,
    Gossip,
    GossipMultipliers,
    PushSum,
    QuasiGlobal,
    Tracking,
    complete,
    directed,
    erdos_renyi,
    exponential,
    hypercube,
    matchings,
    metropolis,
    mix,
    one_peer,
    ring,
    spectral_gap,
    star,
    torus,
)
from numpy_local import top_k
from numpy_training import Array, Sgd, Transformation

WORKERS, SIZE = 8, 5
RATE = 0.1
PAIRS = [[(0, 1), (2, 3), (4, 5), (6, 7)], [(1, 2), (3, 4), (5, 6), (7, 0)]]
GRAPHS = {
    'ring': ring(WORKERS),
    'torus': torus(2, 4),
    'hypercube': hypercube(WORKERS),
    'exponential': exponential(WORKERS),
    'one-peer': one_peer(WORKERS),
    'complete': complete(WORKERS),
    'star': star(WORKERS),
    'erdos-renyi': erdos_renyi(WORKERS, 0.3, np.random.default_rng(0)),
    'edges': metropolis(WORKERS, [*PAIRS[0], *PAIRS[1], (0, 2), (3, 6), (0, 4)]),
    'matchings': matchings(WORKERS, PAIRS, [[0], [1], [0, 1], []], 0.5),
}
ARCS = directed(WORKERS, [(i, (i + 1) % WORKERS) for i in range(WORKERS)] + [(0, 3), (0, 5), (2, 6)])

RNG = np.random.default_rng(0)
CURVATURE = RNG.uniform(0.5, 2, (WORKERS, SIZE))
MINIMA = RNG.normal(size=(WORKERS, SIZE))
START = RNG.normal(size=(WORKERS, SIZE))
BEST = (CURVATURE * MINIMA).sum(0) / CURVATURE.sum(0)
"""Worker i has the loss curvature_i / 2 (x - minima_i)^2, entry by entry; the mean loss is least at BEST."""


def gradients(params: Array) -> Array:
    return CURVATURE * (params - MINIMA)


def train(line: Sequence[Transformation], steps: int, start: Array = START) -> Array:
    """Parameters before each step and after the last, [T + 1, W, n]."""
    params = [start]
    for _ in range(steps):
        values = gradients(params[-1])
        for transformation in line:
            values = transformation(values, np.ones(len(start)), params[-1])
        params.append(params[-1] + values)
    return np.array(params)


def error(params: Array) -> float:
    return float(np.abs(params - BEST).max() / np.abs(BEST).max())


def distance_from_mean(graph: Sequence[Array]) -> float:
    product = np.linalg.multi_dot([*graph[::-1], np.eye(len(graph[0]))])
    return float(np.abs(product - 1 / len(product)).max())


@pytest.mark.parametrize('name', GRAPHS)
def test_rows_and_columns_sum_to_one(name: str) -> None:
    for matrix in GRAPHS[name]:
        np.testing.assert_allclose([matrix.sum(0), matrix.sum(1)], 1, atol=1e-15)
        assert matrix.min() > -1e-15
    assert 0 < spectral_gap(GRAPHS[name]) < 1 + 1e-9


@pytest.mark.parametrize('name', GRAPHS)
def test_disagreement_shrinks_by_the_norm(name: str) -> None:
    graph, params = GRAPHS[name], START
    for matrix in graph * 2:
        norm = np.linalg.norm(matrix - 1 / WORKERS, 2)
        mixed = mix(matrix, params)
        assert np.linalg.norm(mixed - mixed.mean(0)) <= norm * np.linalg.norm(params - params.mean(0)) * (1 + 1e-9)
        params = mixed
    np.testing.assert_allclose(params.mean(0), START.mean(0), atol=1e-15)


def test_spectral_gaps_are_the_closed_forms() -> None:
    for workers, gap in {8: 0.195, 16: 0.051, 64: 0.0032}.items():
        assert spectral_gap(ring(workers)) == pytest.approx(1 - (1 + 2 * np.cos(2 * np.pi / workers)) / 3)
        assert spectral_gap(ring(workers)) == pytest.approx(gap, abs=5e-4)
        for graph in (exponential(workers), hypercube(workers)):
            assert spectral_gap(graph) == pytest.approx(2 / (1 + np.log2(workers)))


def test_a_cycle_of_one_peer_is_the_mean_for_powers_of_two_only() -> None:
    assert distance_from_mean(one_peer(8)) < 1e-15
    assert distance_from_mean(one_peer(6)) == pytest.approx(1 / 12)
    assert distance_from_mean(one_peer(12)) == pytest.approx(1 / 24)


def test_few_workers() -> None:
    for graph in (ring(2), torus(1, 2), hypercube(2), exponential(2), one_peer(2), star(2), metropolis(2, [(1, 0)])):
        np.testing.assert_allclose(graph, complete(2))
    for graph in (ring(1), torus(1, 1), hypercube(1), exponential(1), one_peer(1), star(1), complete(1)):
        np.testing.assert_array_equal(graph, [[[1.0]]])
    np.testing.assert_allclose(torus(2, 2), hypercube(4))


def test_graphs_by_hand() -> None:
    assert exponential(8)[0][1].nonzero()[0].tolist() == [1, 2, 3, 5]
    assert [matrix[7].nonzero()[0].tolist() for matrix in one_peer(8)] == [[0, 7], [1, 7], [3, 7]]
    assert torus(3, 3)[0][0].nonzero()[0].tolist() == [0, 1, 2, 3, 6]
    np.testing.assert_allclose(star(4)[0], [[0.25] * 4, *(np.eye(4) * 0.75)[1:] + 0.25 * np.eye(4)[0]])
    np.testing.assert_allclose(mix(matchings(4, [[(0, 3), (1, 2)]], [[0]], 0.5)[0], np.arange(4.0)), 1.5)


def local_sgd(*rules: Transformation) -> list[Transformation]:
    return [Sgd(RATE), *rules]


EXACT: dict[str, Callable[[list[Array]], list[Transformation]]] = {
    'tracking': lambda graph: [Tracking(graph), Sgd(RATE), Gossip(graph, adapt_first=False)],
    'exact diffusion': lambda graph: local_sgd(ExactDiffusion(graph[0])),
    'd2': lambda graph: local_sgd(ExactDiffusion(graph[0], lazy=False)),
    'extra': lambda graph: local_sgd(Extra(graph[0])),
}
BIASED: dict[str, Callable[[list[Array]], list[Transformation]]] = {
    'adapt first': lambda graph: local_sgd(Gossip(graph)),
    'mix beside': lambda graph: local_sgd(Gossip(graph, adapt_first=False)),
    'every': lambda graph: local_sgd(Gossip(graph, every=3)),
    'choco': lambda graph: local_sgd(Choco(graph, top_k(3, SIZE), 0.3)),
    'choco every': lambda graph: local_sgd(Choco(graph, top_k(3, SIZE), 0.5, every=2)),
    'deep squeeze': lambda graph: local_sgd(DeepSqueeze(graph, top_k(3, SIZE), 0.2)),
}


@pytest.mark.parametrize('graph', ['ring', 'edges'])
@pytest.mark.parametrize('name', EXACT)
def test_these_find_the_minimum(name: str, graph: str) -> None:
    assert error(train(EXACT[name](GRAPHS[graph]), 600)[-1]) < 1e-10


def test_tracking_finds_the_minimum_on_directed_and_changing_graphs() -> None:
    for graph in ('exponential', 'one-peer', 'matchings'):
        assert error(train(EXACT['tracking'](GRAPHS[graph]), 800)[-1]) < 1e-10


def test_d2_needs_eigenvalues_above_minus_a_third() -> None:
    """The smallest of the hypercube of 8 is -1/2; exact diffusion halves the distance to 1."""
    assert error(train(EXACT['exact diffusion'](GRAPHS['hypercube']), 400)[-1]) < 1e-10
    assert error(train(EXACT['d2'](GRAPHS['hypercube']), 100)[-1]) > 1e6


@pytest.mark.parametrize('name', BIASED)
def test_these_stay_near_the_minimum(name: str) -> None:
    """Each has a bias that depends on the rate; it is smaller than without communication."""
    bias = error(train(BIASED[name](GRAPHS['ring']), 600)[-1])
    assert 1e-3 < bias < error(MINIMA) / 2


@pytest.mark.parametrize('name', [*EXACT, *BIASED])
def test_the_mean_of_parameters_moves_by_the_mean_of_updates(name: str) -> None:
    """Of tracking too: the mean of tracked gradients is that of the gradients."""
    params = train((EXACT | BIASED)[name](GRAPHS['ring']), 40)
    updates = np.array([-RATE * gradients(each).mean(0) for each in params[:-1]])
    np.testing.assert_allclose(np.diff(params.mean(1), axis=0), updates, atol=1e-14)


@pytest.mark.parametrize('name', GRAPHS)
def test_the_mean_of_tracked_gradients_is_exact(name: str) -> None:
    tracking = Tracking(GRAPHS[name])
    for values in np.random.default_rng(1).normal(size=(12, WORKERS, SIZE)):
        tracked = tracking(values, np.ones(WORKERS), START)
        np.testing.assert_allclose(tracked.mean(0), values.mean(0), atol=1e-14)


def test_an_exact_codec_makes_d_psgd() -> None:
    expected = train(local_sgd(Gossip(GRAPHS['ring'])), 30)
    for rule in (Choco, DeepSqueeze):
        actual = train(local_sgd(rule(GRAPHS['ring'], lambda x: x, 1.0)), 30)
        np.testing.assert_allclose(actual, expected, atol=1e-14)
        lazy = [0.7 * np.eye(WORKERS) + 0.3 * GRAPHS['ring'][0]]
        actual = train(local_sgd(rule(GRAPHS['ring'], lambda x: x, 0.3)), 30)
        np.testing.assert_allclose(actual, train(local_sgd(Gossip(lazy)), 30), atol=1e-14)


def test_deep_squeeze_sends_what_it_kept_back() -> None:
    """The messages of all steps are the sum of what was to be sent, up to the last compression error."""
    messages: list[Array] = []

    def recorded(vector: Array) -> Array:
        messages.append(top_k(2, SIZE)(vector))
        return messages[-1]

    rule = DeepSqueeze(GRAPHS['ring'], recorded, 0.2)
    params = train(local_sgd(rule), 30)[:-1]
    wanted = sum(each - RATE * gradients(each) for each in params)
    sent = np.array(messages).reshape(30, WORKERS, SIZE).sum(0)
    np.testing.assert_allclose(sent + rule.error, wanted, atol=1e-12)
    assert np.abs(rule.error).max() > 0.1


def test_complete_graphs_make_synchronous_sgd() -> None:
    """From the same start; on the complete graph each rule's workers agree, and step along the mean gradient."""
    start = np.tile(START[0], (WORKERS, 1))
    expected = [start[0]]
    for _ in range(20):
        expected.append(expected[-1] - RATE * gradients(expected[-1]).mean(0))
    for rule in (Gossip(complete(WORKERS)), ExactDiffusion(complete(WORKERS)[0], lazy=False)):
        np.testing.assert_allclose(train(local_sgd(rule), 20, start)[:, 3], expected, atol=1e-14)


def test_extra_is_the_sum_of_its_corrections() -> None:
    matrix = GRAPHS['edges'][0]
    params = train(local_sgd(Extra(matrix)), 30)
    correction = (matrix - np.eye(WORKERS)) / 2
    for t in range(30):
        expected = matrix @ params[t] - RATE * gradients(params[t]) + correction @ params[:t].sum(0)
        np.testing.assert_allclose(params[t + 1], expected, atol=1e-13)


def test_push_sum_finds_the_mean_on_a_directed_graph() -> None:
    np.testing.assert_allclose(ARCS[0].sum(0), 1)
    rule, params, plain = PushSum(ARCS), START, START
    for _ in range(300):
        params = params + rule(np.zeros_like(START), np.ones(WORKERS), params)
        plain = mix(ARCS[0], plain)
        assert rule.weights.sum() == pytest.approx(WORKERS, abs=1e-12)
    np.testing.assert_allclose(params, np.tile(START.mean(0), (WORKERS, 1)), atol=1e-13)
    assert np.abs(plain - START.mean(0)).max() > 0.1


def test_push_sum_on_an_undirected_graph_is_d_psgd() -> None:
    actual = train(local_sgd(PushSum(GRAPHS['ring'])), 20)
    np.testing.assert_allclose(actual, train(local_sgd(Gossip(GRAPHS['ring'])), 20), atol=1e-14)


def disagreement(rule: Transformation, steps: int) -> float:
    """Of 8 workers with 20 entries each that only communicate."""
    params = np.random.default_rng(0).normal(size=(8, 20))
    for _ in range(steps):
        params = params + rule(np.zeros_like(params), np.ones(8), params)
    return float(np.abs(params - params.mean(0)).max())


def test_choco_converges_where_its_step_is_small() -> None:
    assert disagreement(Choco(ring(8), top_k(2, 20), 0.2), 600) < 1e-4
    assert disagreement(Choco(ring(8), top_k(2, 20), 0.4), 600) > 3


def test_quasi_global_momentum_of_one_worker_is_momentum() -> None:
    """x(t - 1) - x(t) = rate (beta m + g), so that m <- (mu + (1 - mu) beta) m + (1 - mu) g."""
    rule, params, momentum = QuasiGlobal(RATE, 0.7, 0.9), START[:1], np.zeros((1, SIZE))
    for _ in range(20):
        gradient = params - MINIMA[:1]
        update = rule(gradient, np.ones(1), params)
        np.testing.assert_allclose(update, -RATE * (0.9 * momentum + gradient), atol=1e-14)
        momentum = (0.7 + 0.3 * 0.9) * momentum + 0.3 * gradient
        params = params + update


@pytest.mark.parametrize('name', ['ring', 'exponential', 'one-peer'])
def test_multipliers_agreed_by_gossip_are_exact(name: str) -> None:
    """The mean of c_i x - d_i <= 0 couples the workers; the conditions of optimality are a linear system."""
    graph = GRAPHS[name]
    normals, offsets = RNG.normal(0.5, 1, (WORKERS, SIZE)), RNG.normal(size=WORKERS)
    offsets += (normals.mean(0) @ BEST - offsets.mean()) - 0.5  # violated by 0.5 at BEST
    system = np.block(
        [[np.diag(CURVATURE.mean(0)), normals.mean(0)[:, None]], [normals.mean(0)[None], np.zeros((1, 1))]]
    )
    solution = np.linalg.solve(system, [*(CURVATURE * MINIMA).mean(0), offsets.mean()])
    assert solution[-1] > 0.1
    dual = GossipMultipliers(graph, 0.05, 1)
    line: list[Transformation] = [Tracking(graph), Sgd(0.05), Gossip(graph, adapt_first=False)]
    params, multipliers = START, dual.multipliers
    for _ in range(2000):
        constraints = (normals * params).sum(1, keepdims=True) - offsets[:, None]
        values = gradients(params) + multipliers * normals
        for transformation in line:
            values = transformation(values, np.ones(WORKERS), params)
        params, multipliers = params + values, dual(constraints)
    np.testing.assert_allclose(np.hstack([params, multipliers]), np.tile(solution, (WORKERS, 1)), atol=1e-9)
