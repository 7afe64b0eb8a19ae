"""The simulation of workers in lockstep gives the seconds of recursions, of closed forms and of examples by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy_clock import Communication, begin_times
from numpy_training import Array

STEPS, WORKERS = 12, 6
SOURCES: dict[str, Sequence[Sequence[int]] | None] = {
    'all': None,
    'ring': [[(i - 1) % WORKERS, (i + 1) % WORKERS] for i in range(WORKERS)],
    'directed': [[(i + 2) % WORKERS] for i in range(WORKERS)],
    'nobody': [[] for _ in range(WORKERS)],
}


def seconds(seed: int = 0) -> Array:
    return np.random.default_rng(seed).lognormal(sigma=0.5, size=(STEPS, WORKERS))


def recursion(compute: Array, next_begin: Callable[[Array, Array], Array]) -> Array:
    begin = [np.zeros(compute.shape[1])]
    for each in compute:
        begin.append(next_begin(begin[-1], each))
    return np.array(begin)


def latest(times: Array, sources: Sequence[Sequence[int]] | None) -> Array:
    """For each worker, the maximum over itself and its sources."""
    everybody = [range(len(times))] * len(times)
    return np.array([max(times[j] for j in (i, *each)) for i, each in enumerate(sources or everybody)])


@pytest.mark.parametrize('name', SOURCES)
def test_compute_then_send(name: str) -> None:
    """T_i(t + 1) = max over its sources and itself of T_j(t) + c_j(t), plus s."""
    sources = SOURCES[name]
    actual = begin_times(seconds(), [[Communication(0.7, sources)]] * STEPS)
    np.testing.assert_array_equal(actual, recursion(seconds(), lambda begin, c: latest(begin + c, sources) + 0.7))


@pytest.mark.parametrize('name', SOURCES)
def test_a_message_that_is_ready_when_the_step_begins(name: str) -> None:
    """T_i(t + 1) = max(T_i(t) + c_i(t), max_j T_j(t) + s)."""
    sources = SOURCES[name]
    actual = begin_times(seconds(), [[Communication(1.2, sources, delay=1)]] * STEPS)
    expected = recursion(seconds(), lambda begin, c: np.maximum(begin + c, latest(begin, sources) + 1.2))
    np.testing.assert_array_equal(actual, expected)


def test_without_communication_seconds_add_up() -> None:
    actual = begin_times(seconds(), [[]] * STEPS)
    np.testing.assert_allclose(actual[1:], seconds().cumsum(0), 1e-15)


def test_a_round_every_few_steps() -> None:
    rounds = [[Communication(0.5)] if step % 3 == 2 else [] for step in range(STEPS)]
    actual = begin_times(seconds(), rounds)[::3]
    blocks = seconds().reshape(-1, 3, WORKERS).sum(1)
    np.testing.assert_allclose(actual, recursion(blocks, lambda begin, c: latest(begin + c, None) + 0.5), 1e-14)


def test_messages_of_one_step_are_sent_one_after_another() -> None:
    rounds = [[Communication(0.5), Communication(0.25, SOURCES['nobody'])]] * STEPS
    actual = begin_times(seconds(), rounds)
    expected = recursion(seconds(), lambda begin, c: np.maximum(latest(begin + c, None) + 0.5, begin + c + 0.75))
    np.testing.assert_allclose(actual, expected, 1e-15)


def test_a_value_that_is_needed_later_waits_for_its_own_arrival() -> None:
    """Steps of one second; the message of step 1 takes 2.5 and is needed two steps later: from 2 to 4.5, not at 4."""
    rounds = [[], [], [], [Communication(2.5, delay=2)], []]
    assert begin_times(np.ones((5, 2)), rounds)[:, 0].tolist() == [0, 1, 2, 3, 4.5, 5.5]


def test_a_link_that_is_slower_than_the_steps_sets_the_pace() -> None:
    """Messages of 2 seconds, one a step of 1 second: the link sends without a pause, and the workers wait."""
    actual = begin_times(np.ones((6, 3)), [[Communication(2.0, delay=3)]] * 6)
    assert actual[:, 1].tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_exponential_seconds_in_lockstep_take_the_harmonic_number() -> None:
    compute = np.random.default_rng(0).exponential(size=(2000, 8))
    pace = begin_times(compute, [[Communication(0.0)]] * 2000)[-1, 0] / 2000
    assert pace == pytest.approx(sum(1 / k for k in range(1, 9)), rel=0.02)


def test_another_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match='rounds of 3 steps and seconds of 4'):
        begin_times(np.ones((4, 2)), [[]] * 3)
