"""Gossip: how messages are drawn, rounds that a guard rejects, and graphs and arguments that are refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist import line
from jaxdist.algorithms.gossip import gossip
from jaxdist.algorithms.track import track
from jaxdist.codecs._neighbours import check_codec, pull
from jaxdist.codecs.by_path import by_path
from jaxdist.codecs.int8 import int8
from jaxdist.core.errors import InputError
from jaxdist.graphs.circulant import one_peer_exponential, ring
from jaxdist.graphs.graph import Graph, Round, build, gap_text, matrix
from jaxdist.graphs.matcha import matchings
from jaxdist.graphs.undirected import edges

WORKERS = 3
RNG = np.random.default_rng(0)


def each(run: Callable[..., Any], *rows: Any) -> Any:
    return jax.jit(jax.vmap(run, axis_name='workers'))(*rows)


def test_rounds_workers_and_groups_round_by_their_own_luck() -> None:
    same = {name: jnp.tile(jnp.float32(RNG.normal(size=64)), (WORKERS, 1)) for name in 'ab'}
    same['b'] = same['a']
    codec = by_path(rules={'a': int8(rounding='stochastic')}, rest=int8(block=128, rounding='stochastic'))
    sent = [each(lambda x, t=t: pull(x, ring().rounds(WORKERS), t, 'workers', codec)[1], same) for t in (0, 1)]
    assert (sent[0]['a'] != sent[1]['a']).any()
    assert (sent[0]['a'][0] != sent[0]['a'][1]).any()
    assert (sent[0]['a'] != sent[0]['b']).any()


def test_nobodys_message_may_be_decoded_as_nan() -> None:
    fragile = int8()._replace(decode=lambda message, n: jnp.where(message.any(), int8().decode(message, n), jnp.nan))
    rounds = edges(((0, 1), (1, 2))).rounds(WORKERS)
    pulls, _ = each(lambda x: pull(x, rounds, 0, 'workers', fragile), jnp.float32(RNG.normal(size=(WORKERS, 256))))
    assert jnp.isfinite(pulls).all()


def test_the_gradient_of_a_rejected_step_counts_as_that_before() -> None:
    update = track()

    def run(g: jax.Array) -> Any:
        _, state = update.update(g, update.init(g))
        y, state = update.update(g * jnp.nan, state, rejected=True)
        return y, state.before

    gradients = jnp.array([0.0, 3.0, 6.0])
    tracked, before = each(run, gradients)
    np.testing.assert_allclose(tracked, 3.0, rtol=1e-6)
    np.testing.assert_array_equal(before, gradients)


@pytest.mark.parametrize('call', ['choco(codec=int8(), gamma=0.5, graph={})', 'extra({})', 'exact_diffusion({})'])
def test_what_remembers_one_graph_takes_one_round(call: str) -> None:
    update = line.build(call.format('one_peer_exponential()'))
    with pytest.raises(InputError, match='the graph has 2 rounds, and what a worker remembers is of one'):
        each(lambda p: update.update(p, update.init(p), p)[0], jnp.ones(WORKERS))


def test_matchings_mix_by_what_mixes_best() -> None:
    # The Laplacian of a ring of 8 has the eigenvalues 2 - sqrt(2) to 4, which 2 / (their sum) brings down most.
    mixing = matrix(matchings(of=ring(), budget=1.0, rounds=1).rounds(8)[0])
    assert mixing[0, 1] == pytest.approx(2 / (6 - np.sqrt(2)), abs=0.02)


def graph_of(*rounds: Round) -> Graph:
    return Graph('mine', lambda workers: rounds)


SWAP = ((1, 0),)
NEGATIVE = graph_of(Round((1.5, 1.5), SWAP, ((-0.5, -0.5),)))
LOST = graph_of(Round((0.5, 0.5), SWAP, ((0.5, 0.4),)))
VOTES = int8()._replace(votes=True)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    'negative': (lambda: build(NEGATIVE, 2), 'worker 0 has a negative weight'),
    'unconnected': (lambda: build(edges(((0, 1), (2, 3))), 4), 'what worker 2 has never comes to worker 0'),
    'given away': (lambda: build(LOST, 2), 'worker 0 gives away parts that add up to 0.9'),
    'of others': (lambda: build(edges(((0, 5),)), 4), r'\(0, 5\) is not of the workers 0 to 3'),
    'several': (lambda: matchings(of=one_peer_exponential(), budget=0.5).rounds(8), 'has several rounds already'),
    'no codec': (lambda: gossip(feedback=True), 'feedback=True needs a codec'),
    'votes': (lambda: check_codec('gossip', {'w': jnp.ones(8)}, VOTES), 'counts votes of all workers'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_mixed_is_refused(name: str) -> None:
    call, error = REFUSED[name]
    with pytest.raises(InputError, match=error):
        call()


def test_graphs_of_many_workers_are_found_connected() -> None:
    assert len(build(line.build_value('erdos_renyi(p=0.3)'), 258)) == 1
    assert build(edges(tuple((i, i + 1) for i in range(699))), 700)


def test_a_graph_in_which_workers_do_not_hear_each_other_has_no_matchings() -> None:
    with pytest.raises(InputError, match='do not hear each other: take an undirected graph'):
        build(matchings(of=line.build_value('static_exponential()'), budget=1.0), 8)


@pytest.mark.parametrize(
    'sources, weights, error',
    [
        ((1, None), (0.5, 0.5), 'worker 1 hears nobody in a permutation, with the weight 0.5'),
        ((1, 1), (0.5, 0.5), 'worker 1 is twice in one permutation'),
    ],
)
def test_a_round_of_your_own_is_checked(sources: Any, weights: Any, error: str) -> None:
    with pytest.raises(InputError, match=error):
        build(Graph('mine()', lambda workers: (Round((0.5, 0.5), (sources,), (weights,)),)), 2)


def test_only_mixing_that_leads_to_the_mean_has_a_gap() -> None:
    both_ways = tuple((i, j) for k in range(1, 8) for i, j in ((0, k), (k, 0)))
    assert gap_text(build(edges(both_ways, directed=True), 8, symmetric=False)) == ''
    assert gap_text(build(edges(both_ways[::2]), 8)).startswith('spectral gap 0.1')
